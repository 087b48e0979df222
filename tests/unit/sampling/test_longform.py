"""Songs of any length: every frame once, nothing given is touched, and tiling changes nothing that is local."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.local_model import SPEC, LocalModel, LocalNetwork
from support.rows import embedding, song_row

from diffdpo.models import MODELS
from diffdpo.models.base import Inpaints, Plans, Prepares, SongModel, supports
from diffdpo.models.diffrhythm.lines import token_lines
from diffdpo.randomness import draw_noise
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import (
    LongformConfig,
    SongRequest,
    compose,
    count_steps,
    order_windows,
    window_groups,
)
from diffdpo.sampling.request import InpaintContext, Request
from diffdpo.sampling.sampler import sample_batch
from diffdpo.sampling.windowed import WindowedModel, window_row, window_shares
from diffdpo.types import Prompt, Row
from diffdpo.windows import Chunks, Window

pytestmark = pytest.mark.slow

chunkings = st.builds(
    lambda half, more: Chunks(size=4 * half + 1 + more, overlap=2 * half, fade=2 * half),
    st.integers(0, 6),
    st.integers(0, 20),
)


def row(frames, model=None):
    prompt = Prompt(id="p", text="rock", duration_s=(frames + 0.5) / SPEC.frames_per_second)
    return song_row(model or LocalModel(), prompt)


def watch(model, calls):
    """Every (x, t) that the model's network is called with."""
    model.network.register_forward_pre_hook(lambda network, args: calls.append((args[0].clone(), args[1])))
    return model


@settings(deadline=None)
@given(st.integers(1, 300), chunkings)
def test_shares_are_one_in_all_on_every_frame(length, chunks):
    (windows,) = window_groups(torch.ones(length, dtype=torch.bool), chunks)
    total = torch.zeros(length)
    for window, share in zip(windows, window_shares(windows, chunks.fade), strict=True):
        assert window.stop - window.start == min(length, chunks.size)
        assert (share >= 0).all()
        total[window.start : window.stop] += share
    assert torch.allclose(total, torch.ones(length))


@settings(deadline=None)
@given(
    st.integers(1, 200), chunkings, st.lists(st.tuples(st.integers(0, 199), st.integers(1, 60)), max_size=4)
)
def test_every_frame_is_generated_once_and_nothing_else_is_touched(length, chunks, spans):
    to_generate = torch.zeros(length, dtype=torch.bool)
    for start, count in spans:
        to_generate[start : start + count] = True
    stretches = window_groups(to_generate, chunks)
    flat = [window for windows in stretches for window in windows]
    assert all(0 <= w.start < w.stop <= length and w.stop - w.start <= chunks.size for w in flat)
    ends = [(windows[0].start, windows[-1].stop) for windows in stretches]
    assert all(one[1] <= other[0] for one, other in pairwise(ends))
    rest = to_generate.clone()
    for window in order_windows(stretches, to_generate):
        assert rest[window.start : window.stop].any(), "a window with nothing to do"
        rest[window.start : window.stop] = False
    assert not rest.any()


def test_a_stretch_sees_what_is_given_on_both_sides():
    chunks = Chunks(size=40, overlap=10, fade=10)
    to_generate = torch.zeros(200, dtype=torch.bool)
    to_generate[100:110] = True
    assert [tuple(w)[:2] for (w,) in window_groups(to_generate, chunks)] == [(85, 125)]
    to_generate[115:120] = True  # near: one stretch
    (windows,) = window_groups(to_generate, chunks)
    assert (windows[0].start, windows[-1].stop) == (85, 138)
    to_generate[:] = False
    to_generate[:5] = True  # at the edge: the window stays inside the song
    assert [tuple(w)[:2] for (w,) in window_groups(to_generate, chunks)] == [(0, 40)]


def test_what_comes_before_a_song_is_generated_backwards():
    chunks = Chunks(size=40, overlap=10, fade=10)
    to_generate = torch.zeros(200, dtype=torch.bool)
    to_generate[:90] = True
    assert [w.start for w in order_windows(window_groups(to_generate, chunks), to_generate)] == [60, 30, 0]
    after = to_generate.flip(0)
    assert [w.start for w in order_windows(window_groups(after, chunks), after)] == [100, 130, 160]


METHODS = pytest.mark.parametrize("method", ["continue", "joint"])


@pytest.fixture
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


def song(model, name, duration_s, text="rock"):
    prompt = Prompt(id=name, text=text, duration_s=duration_s)
    return SongRequest(sample_id=f"{name}.000", row=song_row(model, prompt))


@METHODS
def test_a_song_of_one_window_is_what_the_sampler_makes(model, method):
    whole = song(model, "p", 2.0)
    cfg, longform = SamplingConfig(steps=3), LongformConfig(method=method, window_s=2.0, overlap_s=0.5)
    (latents,) = compose(model, [whole], cfg, longform, seed=3)
    request = Request(sample_id=whole.sample_id, row=whole.row)
    assert torch.equal(latents, sample_batch(model, [request], cfg, seed=3)[0])


@METHODS
def test_songs_of_all_lengths_in_one_batch_come_out_as_alone(model, method):
    songs = [song(model, f"p{i}", seconds) for i, seconds in enumerate((1.0, 5.0, 3.1))]
    cfg, longform = SamplingConfig(steps=2), LongformConfig(method=method, window_s=2.0, overlap_s=0.5)
    calls = []
    together = compose(model, songs, cfg, longform, seed=1, on_step=lambda: calls.append(1))
    assert [len(latents) for latents in together] == [21, 107, 66]
    masks = [torch.ones(len(latents), dtype=torch.bool) for latents in together]
    assert len(calls) == count_steps(model.spec, masks, cfg, longform)
    for request, latents in zip(songs, together, strict=True):
        assert torch.allclose(compose(model, [request], cfg, longform, seed=1)[0], latents, atol=1e-4)


def test_every_window_continues_the_one_before_it(model):
    whole = song(model, "s", 3.1)
    cfg, longform = SamplingConfig(steps=2), LongformConfig(window_s=2.0, overlap_s=0.5)
    reports = []
    (latents,) = compose(
        model,
        [whole],
        cfg,
        longform,
        seed=1,
        on_frames=lambda name, x, count: reports.append((name, count, x.clone())),
    )
    (first, second) = window_groups(torch.ones(66, dtype=torch.bool), longform.chunks(model.spec))[0]
    assert [(name, count) for name, count, _ in reports] == [("s.000", first.stop), ("s.000", 66)]
    assert torch.equal(reports[0][2][: first.stop], latents[: first.stop]), "final frames do not change"
    keep_mask = torch.arange(second.start, second.stop) < first.stop
    given = torch.where(keep_mask[:, None], latents[second.start : second.stop], 0)
    window = Request(
        sample_id="s.000",
        row=Row(embedding=whole.row.embedding, frames=43, first_frame=second.start, song_frames=66),
        context=InpaintContext(given, keep_mask),
        clamp_context=True,
    )
    assert torch.equal(latents[second.start :], sample_batch(model, [window], cfg, seed=1)[0])


@pytest.mark.parametrize("reach", [0, 2])
def test_joint_windows_of_a_local_velocity_are_the_whole(reach):
    """Windows that fade where their border is not seen change nothing: one velocity of the whole song."""
    model = LocalModel(network=LocalNetwork(reach))
    whole = replace(model, spec=replace(SPEC, max_frames=1000))
    cfg = SamplingConfig(steps=5, guidance_scale=3.0)
    chunks = Chunks(size=20, overlap=8, fade=8 - 2 * reach)
    request = Request(sample_id="s", row=row(130))
    (windows,) = window_groups(torch.ones(130, dtype=torch.bool), chunks)
    windowed = WindowedModel(base_model=model, windows=tuple(windows), fade=chunks.fade, batch=3)
    (tiled,), (untiled,) = (sample_batch(m, [request], cfg, seed=0) for m in (windowed, whole))
    assert torch.allclose(tiled, untiled, atol=1e-5)
    seen = window_groups(torch.ones(130, dtype=torch.bool), replace(chunks, fade=8))[0]
    (faded,) = sample_batch(replace(windowed, windows=tuple(seen), fade=8), [request], cfg, seed=0)
    assert torch.allclose(faded, untiled, atol=1e-5) == (reach == 0), "a fade over frames that see the border"


@METHODS
def test_given_frames_stay_and_strength_moves_the_rest(method):
    model = LocalModel(network=LocalNetwork(1))
    longform = LongformConfig(method=method, window_s=4.0, overlap_s=1.0)
    cfg = SamplingConfig(steps=8, guidance_scale=1.0)
    latents = draw_noise(9, ["given"], 150, 4)[0]
    keep_mask = torch.ones(150, dtype=torch.bool)
    keep_mask[60:75] = False
    keep_mask[140:] = False

    def edit(context, strength=1.0):
        request = SongRequest(sample_id="s", row=row(150), context=context, strength=strength)
        return compose(model, [request], cfg, longform, seed=0)[0]

    edited = edit(InpaintContext(latents, keep_mask))
    assert torch.equal(edited[keep_mask], latents[keep_mask])
    assert not torch.isclose(edited[~keep_mask], latents[~keep_mask]).all(1).any()
    nothing = InpaintContext(latents, torch.zeros(150, dtype=torch.bool))
    near, middle, far = (float((edit(nothing, s) - latents).norm()) for s in (0.01, 0.3, 1.0))
    assert near < 0.1 * middle
    assert middle < far


@METHODS
def test_given_frames_are_at_every_step_what_they_are_in_training(method):
    calls = []
    model = watch(LocalModel(network=LocalNetwork(1)), calls)
    latents, noise = draw_noise(9, ["given"], 100, 4)[0], draw_noise(0, ["s"], 100, 4)[0]
    keep_mask = torch.arange(100) < 80
    request = SongRequest(sample_id="s", row=row(100), context=InpaintContext(latents, keep_mask))
    cfg = SamplingConfig(steps=4, guidance_scale=1.0, batch=100)
    longform = LongformConfig(method=method, window_s=4.0, overlap_s=1.0)
    compose(model, [request], cfg, longform, seed=0)
    (window,) = window_groups(~keep_mask, longform.chunks(SPEC))[0]
    frames = slice(window.start, window.stop)
    inside = keep_mask[frames]
    for (x, t), time in zip(calls, (1.0, 0.75, 0.5, 0.25), strict=True):
        assert t.tolist() == [time]
        straight = (1 - time) * latents[frames] + time * noise[frames]
        assert torch.allclose(x[0][inside], straight[inside], atol=1e-5)
    calls.clear()
    compose(model, [request], cfg, replace(longform, clamp_context=False), seed=0)
    assert not torch.allclose(calls[-1][0][0][inside], straight[inside], atol=1e-2)


def test_guidance_leaves_out_a_context_that_is_clamped(model):
    """With one prompt on both sides and the context shown to both there is nothing to guide by."""
    context = InpaintContext(draw_noise(9, ["given"], 43, 8)[0], torch.arange(43) < 20)

    def guided(clamp_context, scale):
        request = Request(
            sample_id="s",
            row=song(model, "p", 2.0, text=None).row,
            context=context,
            clamp_context=clamp_context,
        )
        return sample_batch(model, [request], SamplingConfig(steps=2, guidance_scale=scale), seed=0)[0]

    assert torch.allclose(guided(True, 1.0), guided(True, 4.0), atol=1e-4)
    assert not torch.allclose(guided(False, 1.0), guided(False, 4.0), atol=1e-2)


def test_a_window_is_conditioned_as_excerpts_are_in_training(model):
    """Lyrics that begin in it, at their frames, and its place in the song."""
    model = replace(model, spec=replace(model.spec, frames_per_second=10.0))
    lines = ((0.5, (1, 2)), (4.0, (3,)), (6.9, (4,)), (7.0, (1,)))
    whole = Row(embedding=embedding(torch.ones(16), start=0.2, lines=lines), frames=100)
    assert token_lines(whole.embedding) == lines
    excerpt = window_row(whole, Window(40, 70, 45, 65))
    condition = model.condition([whole, excerpt], 100)
    assert condition["lyrics"][1].nonzero().flatten().tolist() == [0, 29]
    assert condition["lyrics"][1, [0, 29]].tolist() == [3, 4]
    assert condition["lyrics"][0, [5, 6, 40, 69, 70]].tolist() == [1, 2, 3, 4, 1]
    assert condition["start_time"].tolist() == pytest.approx([0.2, 0.2 + 0.8 * 0.4])
    assert condition["duration"].tolist() == pytest.approx([100 / 512, 30 / 512])
    inner = window_row(excerpt, Window(10, 20, 10, 20))
    assert (inner.first_frame, inner.frames, inner.total_frames) == (50, 10, 100)


def test_a_windowed_model_can_do_what_it_and_the_wrapped_model_can(model):
    windows = (Window(0, 20, 0, 16), Window(12, 32, 16, 32))
    tiny, local = (
        WindowedModel(base_model=m, windows=windows, fade=0, batch=8) for m in (model, LocalModel())
    )
    for windowed in (tiny, local):
        assert isinstance(windowed, SongModel)
        assert windowed.spec == replace(windowed.base_model.spec, max_frames=32)
        for name in ("parts", "unconditional", "lora_targets", "fingerprint", "timed_lyrics", "network"):
            assert getattr(windowed, name) is getattr(windowed.base_model, name) or (
                getattr(windowed, name) == getattr(windowed.base_model, name)
            )
        assert supports(windowed, Inpaints)
        assert not supports(windowed, Plans)
    assert supports(tiny, Prepares)
    assert not supports(local, Prepares)


def test_a_velocity_of_windows_is_theirs_where_one_counts_alone_prepared_or_not(model):
    """Dropped parts and contexts reach every window."""
    windows = tuple(Chunks(size=20, overlap=8, fade=4).windows(32))
    windowed = WindowedModel(base_model=model, windows=windows, fade=4, batch=1)
    seconds = 32.5 / model.spec.frames_per_second
    rows = [song(model, text, seconds, text=text).row for text in ("rock", "jazz")]
    x, given, keep_mask = draw_noise(0, "ab", 32, 8), draw_noise(1, "ab", 32, 8), torch.arange(32) < 14
    t, frames, dropped = torch.tensor([0.3, 0.8]), torch.tensor([32, 32]), torch.tensor([True, False])

    def conditions(m, rows, part):
        condition = m.without(m.condition(rows, part.stop - part.start), "style", dropped)
        return m.with_context(condition, given[:, part], keep_mask[part].expand(2, -1))

    condition = conditions(windowed, rows, slice(0, 32))
    with torch.no_grad():
        plain = windowed.velocity(model.network, x, t, condition, frames)
        prepared = windowed.prepare(model.network, condition, frames)
        assert torch.allclose(windowed.velocity(model.network, x, t, prepared, frames), plain, atol=1e-5)
        for window, alone in zip(windows, (slice(0, 14), slice(18, 32)), strict=True):
            part = slice(window.start, window.stop)
            inner = conditions(model, [window_row(r, window) for r in rows], part)
            v = model.velocity(model.network, x[:, part], t, inner, torch.tensor([20, 20]))
            here = slice(alone.start - window.start, alone.stop - window.start)
            assert torch.allclose(plain[:, alone], v[:, here], atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"window_s": -1.0}, "window_s must be"),
        ({"window_s": float("nan")}, "window_s must be"),
        ({"overlap_s": 0.0}, "overlap_s must be a positive number"),
        ({"window_s": 10.0, "overlap_s": 5.0}, "less than half"),
    ],
)
def test_wrong_settings_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        LongformConfig(**bad)


def test_windows_are_never_longer_than_the_model_takes():
    assert LongformConfig(window_s=60.0).chunks(SPEC).size == SPEC.max_frames
    assert LongformConfig().chunks(SPEC).size == SPEC.max_frames
    assert LongformConfig(window_s=2.0, overlap_s=0.5).chunks(SPEC) == Chunks(size=20, overlap=4, fade=4)
