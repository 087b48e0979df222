"""Songs of any length: every frame once, nothing given is touched, and tiling changes nothing that is local."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdpo.models import MODELS
from diffdpo.models.base import LatentSpec
from diffdpo.randomness import draw_noise
from diffdpo.sampling.denoising import Context, SamplingConfig
from diffdpo.sampling.longform import LongformConfig, Song, compose, in_turn, plan, steps
from diffdpo.sampling.sampler import Request, embed_all, sample
from diffdpo.sampling.windowed import Joined, seen_from, shares
from diffdpo.types import Prompt
from diffdpo.windows import Chunks, Window

SPEC = LatentSpec(channels=4, frames_per_second=10.0, sample_rate=1000, max_frames=40)
chunkings = st.builds(
    lambda half, more: Chunks(size=4 * half + 1 + more, overlap=2 * half, fade=2 * half),
    st.integers(0, 6),
    st.integers(0, 20),
)


@dataclass(frozen=True)
class Local:
    """A model whose velocity at a frame depends on `reach` frames on either side, and on the context there."""

    reach: int = 0
    latents: LatentSpec = SPEC
    on_call: Callable[..., None] = lambda x, t: None
    network: torch.nn.Module = torch.nn.Linear(1, 1)  # noqa: RUF009 - only its device is looked at

    def embed(self, prompt):
        return prompt

    def condition(self, prompts, frames):
        return {"audio": torch.zeros(len(prompts), frames, 4)}

    def velocity(self, network, x, t, condition, frames):
        self.on_call(x, t)
        taps = torch.ones(4, 1, 2 * self.reach + 1) / (2 * self.reach + 1)
        seen = torch.tanh(x + condition["audio"]).transpose(1, 2)
        return torch.nn.functional.conv1d(seen, taps, padding=self.reach, groups=4).transpose(1, 2) * t.to(
            x
        ).view(-1, 1, 1)

    def encode(self, clip):
        raise NotImplementedError

    def decode(self, latents, first_frame=0):
        raise NotImplementedError


def prompt(frames, **more):
    return Prompt(id="p", text="rock", duration_s=(frames + 0.5) / SPEC.frames_per_second, **more)


@settings(deadline=None)
@given(st.integers(1, 300), chunkings)
def test_shares_are_one_in_all_on_every_frame(length, chunks):
    (windows,) = plan(torch.ones(length, dtype=torch.bool), chunks)
    total = torch.zeros(length)
    for window, share in zip(windows, shares(windows, chunks.fade), strict=True):
        assert window.stop - window.start == min(length, chunks.size)
        assert (share >= 0).all()
        total[window.start : window.stop] += share
    assert torch.allclose(total, torch.ones(length))


@settings(deadline=None)
@given(
    st.integers(1, 200), chunkings, st.lists(st.tuples(st.integers(0, 199), st.integers(1, 60)), max_size=4)
)
def test_every_missing_frame_is_made_once_and_nothing_else_is_touched(length, chunks, spans):
    made = torch.zeros(length, dtype=torch.bool)
    for start, count in spans:
        made[start : start + count] = True
    stretches = plan(made, chunks)
    flat = [window for windows in stretches for window in windows]
    assert all(0 <= w.start < w.stop <= length and w.stop - w.start <= chunks.size for w in flat)
    ends = [(windows[0].start, windows[-1].stop) for windows in stretches]
    assert all(one[1] <= other[0] for one, other in pairwise(ends))
    missing = made.clone()
    for window in in_turn(stretches, made):
        assert missing[window.start : window.stop].any(), "a window with nothing to do"
        missing[window.start : window.stop] = False
    assert not missing.any()


def test_a_stretch_sees_what_is_given_on_both_sides():
    chunks = Chunks(size=40, overlap=10, fade=10)
    made = torch.zeros(200, dtype=torch.bool)
    made[100:110] = True
    assert [tuple(w)[:2] for (w,) in plan(made, chunks)] == [(85, 125)]
    made[115:120] = True  # near: one stretch
    (windows,) = plan(made, chunks)
    assert (windows[0].start, windows[-1].stop) == (85, 138)
    made[:] = False
    made[:5] = True  # at the edge: the window stays inside the song
    assert [tuple(w)[:2] for (w,) in plan(made, chunks)] == [(0, 40)]


def test_what_comes_before_a_song_is_made_backwards():
    chunks = Chunks(size=40, overlap=10, fade=10)
    made = torch.zeros(200, dtype=torch.bool)
    made[:90] = True
    assert [w.start for w in in_turn(plan(made, chunks), made)] == [60, 30, 0]
    after = made.flip(0)
    assert [w.start for w in in_turn(plan(after, chunks), after)] == [100, 130, 160]


@pytest.mark.parametrize("method", ["continue", "joint"])
def test_a_song_of_one_window_is_what_the_sampler_makes(bundle, method):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    asked = embed_all(model, [Prompt(id="p", text="rock", duration_s=2.0)])["p"]
    cfg, longform = SamplingConfig(steps=3), LongformConfig(method=method, window_s=2.0, overlap_s=0.5)
    (song,) = compose(model, [Song("p.000", asked)], cfg, longform, seed=3)
    assert torch.equal(song, sample(model, [Request("p.000", asked)], cfg, seed=3)[0])


@pytest.mark.parametrize("method", ["continue", "joint"])
def test_songs_of_all_lengths_in_one_batch_come_out_as_alone(bundle, method):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    prompts = [Prompt(id=f"p{i}", text="rock", duration_s=d) for i, d in enumerate((1.0, 5.0, 3.1))]
    songs = [Song(f"{p.id}.000", p) for p in embed_all(model, prompts).values()]
    cfg, longform = SamplingConfig(steps=2), LongformConfig(method=method, window_s=2.0, overlap_s=0.5)
    calls = []
    together = compose(model, songs, cfg, longform, seed=1, on_step=lambda: calls.append(1))
    assert [len(song) for song in together] == [21, 107, 66]
    missing = [torch.ones(len(song), dtype=torch.bool) for song in together]
    assert len(calls) == steps(model.latents, missing, cfg, longform)
    for song, whole in zip(songs, together, strict=True):
        assert torch.allclose(compose(model, [song], cfg, longform, seed=1)[0], whole, atol=1e-4)


def test_every_window_continues_the_one_before_it(bundle):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    asked = embed_all(model, [Prompt(id="p", text="rock", duration_s=3.1)])["p"]
    cfg, longform = SamplingConfig(steps=2), LongformConfig(window_s=2.0, overlap_s=0.5)
    heard = []
    (song,) = compose(
        model,
        [Song("s", asked)],
        cfg,
        longform,
        seed=1,
        on_finished=lambda _, x, n: heard.append((n, x.clone())),
    )
    (first, second) = plan(torch.ones(66, dtype=torch.bool), longform.chunks(model.latents))[0]
    assert [n for n, _ in heard] == [first.stop, 66]
    assert torch.equal(heard[0][1][: first.stop], song[: first.stop]), "what was heard does not change"
    keep = torch.arange(second.start, second.stop) < first.stop
    given = torch.where(keep[:, None], song[second.start : second.stop], 0)
    pace = 1 / 66
    window = Request(
        "s",
        seen_from(second, asked, pace, model.latents),
        Context(given, keep),
        first_frame=second.start,
        pin=True,
    )
    (again,) = sample(model, [window], cfg, seed=1)
    assert torch.equal(song[second.start :], again)


@pytest.mark.parametrize("reach", [0, 2])
def test_joint_windows_of_a_local_velocity_are_the_whole(reach):
    """Windows that fade where their border is not seen change nothing: one velocity of the whole song."""
    model = Local(reach)
    whole = replace(model, latents=replace(SPEC, max_frames=1000))
    cfg = SamplingConfig(steps=5, guidance=1.0)
    chunks = Chunks(size=20, overlap=8, fade=8 - 2 * reach)
    request = Request("s", prompt(130))
    (windows,) = plan(torch.ones(130, dtype=torch.bool), chunks)
    joined = Joined(model=model, windows=tuple(windows), pace=1 / 130, fade=chunks.fade, batch=3)
    (tiled,), (untiled,) = (sample(m, [request], cfg, seed=0) for m in (joined, whole))
    assert torch.allclose(tiled, untiled, atol=1e-5)


@pytest.mark.parametrize("method", ["continue", "joint"])
def test_what_is_given_stays_and_strength_moves_the_rest(method):
    model, longform = Local(1), LongformConfig(method=method, window_s=4.0, overlap_s=1.0)
    cfg = SamplingConfig(steps=8, guidance=1.0)
    latents = draw_noise(9, ["given"], 150, 4)[0]
    keep = torch.ones(150, dtype=torch.bool)
    keep[60:75] = False
    keep[140:] = False
    song = Song("s", prompt(150), Context(latents, keep))
    (edited,) = compose(model, [song], cfg, longform, seed=0)
    assert torch.equal(edited[keep], latents[keep])
    assert not torch.isclose(edited[~keep], latents[~keep]).all(1).any()
    nothing = Context(latents, torch.zeros(150, dtype=torch.bool))
    distances = []
    for strength in (0.01, 0.3, 1.0):
        (varied,) = compose(model, [Song("s", prompt(150), nothing, strength)], cfg, longform, seed=0)
        distances.append(float((varied - latents).norm()))
    assert distances[0] < 0.1 * distances[1] < distances[2]


@pytest.mark.parametrize("method", ["continue", "joint"])
def test_what_is_given_is_at_every_step_what_it_is_in_training(method):
    model, seen = Local(1), []
    watched = replace(model, on_call=lambda x, t: seen.append((x.clone(), t.clone())))
    latents, noise = draw_noise(9, ["given"], 100, 4)[0], draw_noise(0, ["s"], 100, 4)[0]
    keep = torch.arange(100) < 80
    song = Song("s", prompt(100), Context(latents, keep))
    cfg = SamplingConfig(steps=4, guidance=1.0, batch=100)
    longform = LongformConfig(method=method, window_s=4.0, overlap_s=1.0)
    compose(watched, [song], cfg, longform, seed=0)
    (window,) = plan(~keep, longform.chunks(SPEC))[0]
    there = keep[window.start : window.stop]
    for (x, t), time in zip(seen, (1.0, 0.75, 0.5, 0.25), strict=True):
        assert t.tolist() == [time]
        straight = (1 - time) * latents + time * noise
        assert torch.allclose(x[0][there], straight[window.start : window.stop][there], atol=1e-5)
    seen.clear()
    compose(watched, [song], cfg, replace(longform, pin=False), seed=0)
    x, _ = seen[-1]
    straight = 0.75 * latents + 0.25 * noise
    assert not torch.allclose(x[0][there], straight[window.start : window.stop][there], atol=1e-2)


def test_guidance_leaves_out_what_is_given_where_it_is_pinned(bundle):
    """With one prompt on both sides and the context shown to both there is nothing to guide by."""
    model = MODELS["tiny"](bundle=str(bundle)).load()
    asked = embed_all(model, [Prompt(id="p", text=None, duration_s=2.0)])["p"]
    context = Context(draw_noise(9, ["given"], 43, 8)[0], torch.arange(43) < 20)
    made = {
        (pin, scale): sample(
            model, [Request("s", asked, context, pin=pin)], SamplingConfig(steps=2, guidance=scale), seed=0
        )[0]
        for pin in (True, False)
        for scale in (1.0, 4.0)
    }
    assert torch.allclose(made[True, 1.0], made[True, 4.0], atol=1e-4)
    assert not torch.allclose(made[False, 1.0], made[False, 4.0], atol=1e-2)


def test_a_window_is_asked_for_as_excerpts_are_in_training():
    whole = prompt(100, start=0.2, lyric_lines=((0.5, (1, 2)), (4.0, (3,)), (6.9, (4,)), (7.0, (5,))))
    window = Window(40, 70, 40, 70)
    part = seen_from(window, whole, 0.8 / 100, SPEC)
    assert part.lyric_lines == ((0.0, (3,)), (pytest.approx(2.9), (4,)))
    assert part.start == pytest.approx(0.2 + 0.8 * 0.4)
    assert SPEC.frames(part.duration_s) == 30
    assert part.text == "rock"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"window_s": -1.0}, "window_s must be"),
        ({"window_s": float("nan")}, "window_s must be"),
        ({"overlap_s": 0.0}, "overlap_s must be positive"),
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
