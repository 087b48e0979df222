"""What every scorer keeps, those of other distributions included: finite, deterministic, blind to level and batch.

A test whose one argument is `scorer` is part of the contract. A scorer that another package announces can be put to
the whole of it by name: `pytest tests/contract/test_scorers.py -k NAME`.
"""

import dataclasses
import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from contract.scorer_fixtures import WEIGHTS, build

from diffdpo import audio
from diffdpo.parts import build_scorers
from diffdpo.scorers import SCORERS
from diffdpo.scorers.base import TRAITS, PromptScorer, Scorer, fingerprint
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.engine import score_clips
from diffdpo.types import Clip, Prompt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RATE = 22_050
SONG = audio.read(ROOT / "tests" / "data" / "galactic_temple.ogg", start_s=40.0, seconds=10.0)
PROMPT = Prompt(id="p", text="electronic, ambient, slow")


def clip(samples: np.ndarray, rate: int = RATE) -> Clip:
    return Clip(samples=np.atleast_2d(samples).astype(np.float32), sample_rate=rate)


def noise(num: int, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((channels, num))


def scores(scorer: Scorer, sounds: list[Clip]) -> np.ndarray:
    """Of sounds of any level, all for one prompt."""
    clips = [canonical(sound) for sound in sounds]
    return scorer(clips, [PROMPT] * len(clips)) if isinstance(scorer, PromptScorer) else scorer(clips)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module", params=list(SCORERS))
def scorer(request, folder) -> Scorer:
    return build(request.param, folder)


def test_it_says_what_it_is(scorer):
    assert isinstance(scorer, Scorer)
    assert scorer.axes
    assert all(re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", axis) for axis in scorer.axes)
    assert scorer.traits.keys() == set(scorer.axes)
    assert set(getattr(scorer, "judges", scorer.axes)) <= set(scorer.axes)
    assert type(scorer).__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        scorer.version = "99"


def test_a_clip_scores_the_same_alone_in_any_batch_and_again(scorer):
    sounds = [SONG, clip(noise(2 * RATE)), clip(noise(5 * 16_000, channels=2), 16_000), SONG]
    together = scores(scorer, sounds)
    assert together.shape == (4, len(scorer.axes))
    assert np.array_equal(together, scores(scorer, sounds))
    for row, sound in zip(together, sounds, strict=True):
        assert row == pytest.approx(scores(scorer, [sound])[0], abs=1e-5)
    if "batch" in {field.name for field in dataclasses.fields(scorer)}:
        wider = dataclasses.replace(scorer, batch=3)
        assert fingerprint(wider) == fingerprint(scorer)
        assert scores(wider, sounds) == pytest.approx(together, abs=1e-4)
    assert scores(scorer, []).shape == (0, len(scorer.axes))


def test_no_gain_changes_a_score(scorer):
    song = clip(SONG.samples[:, : 6 * SONG.sample_rate], SONG.sample_rate)
    levels = [clip(song.samples * 10 ** (db / 20), song.sample_rate) for db in (0, -20, -6, 6)]
    first, *others = scores(scorer, levels)
    for row in others:
        assert row == pytest.approx(first, rel=1e-3)


def test_silence_scores_lowest(scorer):
    silence, *others = scores(scorer, [clip(np.zeros((2, 2 * RATE))), SONG, clip(noise(5 * RATE))])
    assert (silence <= np.array(others)).all()


SOUNDS: dict[str, Callable[[int], np.ndarray]] = {
    "silence": lambda num: np.zeros((2, num)),
    "direct current": lambda num: np.full((1, num), 0.5),
    "a click": lambda num: np.eye(1, num, num // 2),
    "noise": noise,
    "a sine": lambda num: 0.5 * np.sin(2 * np.pi * 110 * np.arange(num) / RATE)[None],
    "Nyquist": lambda num: 0.5 * (-1.0) ** np.arange(num)[None],
    "a loud channel and a silent one": lambda num: np.concatenate([noise(num), np.zeros((1, num))]),
    "opposite phase": lambda num: np.concatenate([noise(num), -noise(num)]),
    "six channels": lambda num: noise(num, channels=6),
    "a whisper": lambda num: 1e-7 * noise(num),
    "huge": lambda num: 1e6 * noise(num),
    "half silent": lambda num: noise(num) * (np.arange(num) > num / 2),
}


@pytest.mark.filterwarnings("error")
def test_every_odd_sound_gets_finite_scores_without_a_warning(scorer):
    """From a single sample to six seconds."""
    sounds = {(name, num): clip(make(num)) for name, make in SOUNDS.items() for num in (1, RATE, 6 * RATE)}
    finite = np.isfinite(scores(scorer, list(sounds.values()))).all(1)
    assert not [key for key, row in zip(sounds, finite, strict=True) if not row]


def test_the_fingerprint_follows_the_version_and_the_fields_that_decide_numbers(scorer):
    first = fingerprint(scorer)
    assert fingerprint(dataclasses.replace(scorer)) == first
    hints = get_type_hints(type(scorer))
    for field in dataclasses.fields(scorer):
        if field.repr:
            value = another(getattr(scorer, field.name), get_args(hints[field.name]))
            assert fingerprint(dataclasses.replace(scorer, **{field.name: value})) != first, field.name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(scorer), "version", f"{scorer.version}+1")
        assert fingerprint(scorer) != first


def another(value, choices: tuple):
    """A valid value of a field that differs from this one: a tenth smaller, or the next choice."""
    if isinstance(value, tuple):
        return (0.9 * value[0], *value[1:])
    return next(choice for choice in choices if choice != value) if choices else 0.9 * value


def test_a_scorer_of_prompts_gives_0_for_one_that_says_nothing(scorer):
    if not isinstance(scorer, PromptScorer):
        return
    song, silence = canonical(SONG), canonical(clip(np.zeros(6 * RATE)))
    values = scorer([song, song, silence], [PROMPT, Prompt(id="empty"), PROMPT])[:, 0]
    assert values[1] == 0 == scorer([song])[0, 0]
    assert values[0] not in (0, values[2])
    assert values[2] == min(values) == scorer([silence])[0, 0]
    with pytest.raises(ValueError, match="zip"):
        scorer([song], [PROMPT, PROMPT])


CONTRACT = [
    function
    for name, function in list(globals().items())
    if name.startswith("test_") and list(inspect.signature(function).parameters) == ["scorer"]
]


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_fingerprint_follows_the_weights(name, folder, tmp_path):
    weights = [build(name, where, seed) for where, seed in ((folder, 1), (tmp_path, 1), (tmp_path, 2))]
    first, copy, others = map(fingerprint, weights)
    assert first == copy != others


def test_axes_are_unique_and_judges_are_networks_that_no_model_is_trained_on():
    axes = [axis for entry in SCORERS.values() for axis in entry.axes]
    assert len(set(axes)) == len(axes)
    judges = {name for name, entry in SCORERS.entries.items() if entry.judge_only}
    assert judges == {"musicnn", "tags", "notes", "beats", "form", "second_critic", "artefacts", "pitch"}
    assert {trait for entry in SCORERS.entries.values() for trait in entry.traits.values()} <= set(TRAITS)


def test_a_scorer_of_another_distribution_is_found_scores_and_keeps_the_contract(tmp_path, monkeypatch):
    """The package of the how-to, as installed."""
    page = (ROOT / "docs" / "howto" / "add-a-scorer.md").read_text()
    code, table = (re.search(rf"```{name}\n(.*?)```", page, re.DOTALL)[1] for name in ("python", "toml"))
    (points,) = tomllib.loads(table)["project"]["entry-points"].values()
    (module,) = {value.split(":")[0] for value in points.values()}
    (tmp_path / f"{module}.py").write_text(code)
    info = tmp_path / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{SCORERS.group}]", *lines]))
    assert not points.keys() & set(SCORERS)
    monkeypatch.syspath_prepend(tmp_path)
    assert points.keys() <= set(SCORERS)
    for name in points:
        scorers = build_scorers([name, "production"])
        assert SCORERS[name].__module__ == module
        for check in CONTRACT:
            check(scorers[name])
        (row,) = score_clips([SONG], scorers)
        assert row.values.keys() == {*scorers[name].axes, "production.balance"}
        assert not row.undefined_axes
