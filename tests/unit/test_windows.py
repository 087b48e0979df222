"""Pieces of a song, joined, are the song."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdpo.windows import CUTS, Chunks, Window, assemble, chunks_for_context, stream

SMALL = (
    Chunks(size=12, overlap=6, fade=2),
    Chunks(size=12, overlap=6, fade=0),
    Chunks(size=11, overlap=4, fade=4),
)
PER_FRAME = 3


def ramp(start, stop):
    """Places that know where they are in the song."""
    return torch.arange(start * PER_FRAME, stop * PER_FRAME, dtype=torch.float32)


def whole(run, length, chunks, per_frame=1):
    return assemble(stream(run, length, chunks, per_frame=per_frame), length * per_frame)


@given(st.integers(1, 120), st.sampled_from(SMALL))
@settings(max_examples=60, deadline=None)
def test_every_place_comes_once_and_in_order(length, chunks):
    assert torch.equal(whole(ramp, length, chunks, PER_FRAME), ramp(0, length))


@given(st.integers(1, 120), st.sampled_from(SMALL))
@settings(max_examples=60, deadline=None)
def test_the_edge_of_a_window_is_never_used_but_at_the_ends_of_the_song(length, chunks):
    def run(start, stop):
        made = ramp(start, stop)
        edge = chunks.context * PER_FRAME
        if start > 0:
            made[:edge] = torch.nan
        if stop < length:
            made[len(made) - edge :] = torch.nan
        return made

    assert torch.equal(whole(run, length, chunks, PER_FRAME), ramp(0, length))


@given(st.integers(1, 400), st.sampled_from([*SMALL, *CUTS.values()]))
@settings(max_examples=60, deadline=None)
def test_windows_have_one_size_and_as_few_as_can_be(length, chunks):
    windows = chunks.windows(length)
    assert {window.stop - window.start for window in windows} == {min(length, chunks.size)}
    hop = chunks.size - chunks.overlap
    assert len(windows) == (1 if length <= chunks.size else 1 + -(-(length - chunks.size) // hop))


def test_the_published_windows_cut_behind_half_the_overlap():
    """Starts 0, 96, …, the last one back at 172; sixteen frames go from both sides of a cut."""
    assert CUTS["published"].windows(300) == [
        Window(0, 128, 0, 112),
        Window(96, 224, 112, 188),
        Window(172, 300, 188, 300),
    ]


def test_a_fade_is_linear_and_in_the_middle_of_the_overlap():
    chunks = Chunks(size=12, overlap=6, fade=4)
    made = iter([torch.zeros(12), torch.ones(12)])
    joined = whole(lambda start, stop: next(made), 18, chunks)
    assert joined.tolist() == [*[0.0] * 7, 0.125, 0.375, 0.625, 0.875, *[1.0] * 7]


def test_a_hard_cut_takes_either_side_as_it_is():
    made = iter([torch.zeros(12), torch.ones(12)])
    joined = whole(lambda start, stop: next(made), 18, Chunks(size=12, overlap=6, fade=0))
    assert joined.tolist() == [*[0.0] * 9, *[1.0] * 9]


def test_a_convolution_in_windows_equals_the_convolution_if_the_context_covers_its_reach():
    generator = torch.Generator().manual_seed(0)
    song, kernel = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 500), (4, 3, 41)))

    def run(start, stop):
        return F.conv1d(song[..., start:stop], kernel, padding=20)

    expected = run(0, 500)
    enough = whole(run, 500, chunks_for_context(20))
    assert (enough - expected).abs().max() < 1e-4
    assert (whole(run, 500, CUTS["published"]) - expected).abs().max() > 0.1  # 16 frames are four too few


def test_as_much_context_as_is_asked_for_and_never_less_than_published():
    assert all(chunks_for_context(frames).context >= frames for frames in range(100))
    assert chunks_for_context(10) == CUTS["cross_fade"] == Chunks(size=128, overlap=32, fade=8)
    assert chunks_for_context(13).overlap > 32


@pytest.mark.parametrize("sizes", [(10, 4, 6), (8, 6, 2), (12, 6, -2), (12, 5, 2), (12, 6, 3)])
def test_windows_that_cannot_be_joined_are_refused(sizes):
    size, overlap, fade = sizes
    with pytest.raises(ValueError, match="overlap"):
        Chunks(size=size, overlap=overlap, fade=fade)


def test_a_function_of_another_rate_is_noticed():
    with pytest.raises(ValueError, match="4 frames gave 4 places, not 2 a frame"):
        whole(lambda start, stop: torch.zeros(stop - start), 4, SMALL[0], 2)
    with pytest.raises(ValueError, match="3 places together, not 4"):
        assemble(iter([torch.zeros(3)]), 4)
