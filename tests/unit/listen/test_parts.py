"""The parts of a listening test that know neither web nor database."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.listening import sine, write_songs

from diffdpo import audio
from diffdpo.errors import DataError
from diffdpo.listen.catalog import Catalog, ListenedSong, read_listened_songs, song_pairs, system_names
from diffdpo.listen.excerpts import (
    ExcerptLevel,
    ExcerptSpan,
    apply_damage,
    common_span,
    cut_excerpt,
    matched_gains,
    measure_level,
    to_flac,
)
from diffdpo.listen.headphones import headphone_targets, huggins_clip
from diffdpo.listen.listening import MAX_GAP_S, PlaybackState
from diffdpo.listen.study import ExcerptConfig, Study, TrialConfig
from diffdpo.listen.trials import MIN_REPEAT_DISTANCE, PastTrial, VoteLog, plan_trial, trial_kinds
from diffdpo.types import Clip

EVENTS = st.tuples(
    st.sampled_from(["play", "tick", "pause"]), st.integers(0, 2), st.floats(-1, 20, allow_nan=False)
)


@given(st.lists(EVENTS, max_size=30))
def test_nobody_hears_more_than_has_passed(events: list[tuple[str, int, float]]) -> None:
    listening, now, start = PlaybackState((0.0, 0.0, 0.0)), 100.0, 100.0
    for reports, (event, position, gap) in enumerate(events, 1):
        now = max(now, now + gap)
        listening = listening.advance(event, position, now)
        assert sum(listening.heard_s) <= now - start + 1e-9
        assert sum(listening.heard_s) <= MAX_GAP_S * reports
        assert min(listening.heard_s) >= 0
    assert sum(listening.stop_at(now + 1000).heard_s) - sum(listening.heard_s) <= MAX_GAP_S


def test_only_what_sounds_is_credited() -> None:
    listening = PlaybackState((0.0, 0.0))
    for event, position, now in (
        ("play", 0, 10),
        ("tick", 0, 11),
        ("play", 1, 12.5),
        ("pause", 1, 13),
        ("pause", 1, 15),
    ):
        listening = listening.advance(event, position, now)
    assert listening.heard_s == (2.5, 0.5)
    assert not listening.is_enough(1)
    assert listening.is_enough(0.5)
    for event, position in (("stop", 0), ("play", 2), ("play", -1)):
        with pytest.raises(ValueError, match="no such event"):
            listening.advance(event, position, 20)


def noise(level: float, seed: int) -> Clip:
    samples = np.random.default_rng(seed).normal(0, level, (2, 44100)).astype(np.float32)
    return Clip(samples=samples, sample_rate=44100)


@pytest.mark.parametrize("target", [-23.0, -14.0])
def test_excerpts_are_equally_loud(target: float) -> None:
    clips = [noise(0.02, 0), noise(0.15, 1), sine(1000, 1, 0.05)]
    gains = matched_gains([measure_level(clip) for clip in clips], ExcerptConfig(loudness_lufs=target))
    levels = [
        audio.loudness(Clip(samples=clip.samples * np.float32(gain), sample_rate=clip.sample_rate))
        for clip, gain in zip(clips, gains, strict=True)
    ]
    assert max(levels) - min(levels) < 0.01
    assert max(levels) <= target + 0.01


def test_a_peak_lowers_all_alike_and_nothing_is_limited() -> None:
    cfg = ExcerptConfig(loudness_lufs=-20, true_peak_db=-6)
    quiet, spiky = ExcerptLevel(-30, 0.1), ExcerptLevel(-20, 1.0)
    assert matched_gains([quiet], cfg) == pytest.approx((10 ** (10 / 20),))
    lowered = matched_gains([quiet, spiky], cfg)
    assert lowered[1] == pytest.approx(10 ** (-6 / 20))
    assert lowered[0] / lowered[1] == pytest.approx(10 ** (10 / 20))
    assert matched_gains([ExcerptLevel(-math.inf, 0.0), quiet], cfg)[0] == 1
    clip = sine(997, 1, 0.5)
    served = to_flac(clip, 1.0)
    assert served[:4] == b"fLaC"


def test_a_true_peak_lies_between_samples() -> None:
    rate = 48000  # a sine at a quarter of the rate, 45° off: its samples are at most 0.7 of its peak
    wave = np.sin(np.pi / 2 * np.arange(rate) + np.pi / 4).astype(np.float32)
    level = measure_level(Clip(samples=np.stack([wave, wave]), sample_rate=rate))
    assert float(np.abs(wave).max()) == pytest.approx(0.7071, abs=1e-3)
    assert level.true_peak == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_excerpts_of_a_trial_have_equal_length(tmp_path: Path, rate: int) -> None:
    audio.write(tmp_path / "a.flac", sine(300, 5.0))
    audio.write(tmp_path / "b.wav", noise(0.1, 2))
    span = common_span([5.0, 1.0], ExcerptConfig(seconds=3), 0, "key")
    assert span == ExcerptSpan(begin_s=0.0, seconds=1.0)
    lengths = {cut_excerpt(tmp_path / name, span, rate).samples.shape for name in ("a.flac", "b.wav")}
    assert lengths == {(2, rate)}


def test_excerpts_begin_where_the_configuration_says() -> None:
    assert common_span([10, 12], ExcerptConfig(seconds=4, start="start"), 0, "k") == ExcerptSpan(
        begin_s=0, seconds=4
    )
    assert common_span([10, 12], ExcerptConfig(seconds=4, start="middle"), 0, "k") == ExcerptSpan(
        begin_s=3, seconds=4
    )
    assert common_span([10, 12], ExcerptConfig(seconds=0), 0, "k") == ExcerptSpan(begin_s=0, seconds=10)
    begins = {common_span([10, 12], ExcerptConfig(seconds=4), 0, f"k{k}").begin_s for k in range(20)}
    assert len(begins) > 10
    assert all(0 <= begin <= 6 for begin in begins)


def test_damages_are_heard_and_leave_the_length() -> None:
    clip = noise(0.1, 3)
    for name in ("lowpass-1500", "clipping", "noise", "lowpass-3500"):
        worse = apply_damage(clip, name)
        assert worse.samples.shape == clip.samples.shape
        assert np.abs(worse.samples - clip.samples).max() > 0.01
    assert apply_damage(clip, "") is clip
    spectrum = np.abs(np.fft.rfft(apply_damage(clip, "lowpass-3500").samples[0]))
    assert spectrum[5000:].mean() < 0.02 * spectrum[:3000].mean()


def test_the_headphone_tone_is_in_neither_ear_alone() -> None:
    clip = huggins_clip(1, 7)
    rate = clip.sample_rate
    noises = [clip.samples[:, round(1.5 * k * rate) :][:, :rate] for k in range(3)]
    same = [bool(np.allclose(noise[0], noise[1])) for noise in noises]
    assert same == [True, False, True]
    spectra = np.abs(np.fft.rfft(noises[1]))  # as loud in both ears at every frequency
    assert np.allclose(spectra[0, 200:5000].mean(), spectra[1, 200:5000].mean(), rtol=0.01)
    difference = np.abs(np.fft.rfft(noises[1][0] - noises[1][1]))
    assert 560 < np.argmax(difference) < 640
    assert {target for seed in range(30) for target in headphone_targets(seed, 6)} == {0, 1, 2}


def catalog(songs: int, prompts: int = 1) -> Catalog:
    rows = tuple(
        ListenedSong(
            key=f"s/{i}", path=f"{i}", song=f"{i}", system="s", prompt_id=f"p{i % prompts}", sha256=f"{i}",
            seconds=3, sample_rate=8000,
        )
        for i in range(songs)
    )  # fmt: skip
    return Catalog(songs=rows, pairs=song_pairs(rows, "within"))


def session(study: Study, songs: Catalog, seed: int, votes: VoteLog) -> list[tuple[PastTrial, str]]:
    """All trials of a listener who always answers a, with the right answers of control pairs."""
    kinds = trial_kinds(study.trials, study.mode, len(songs.pairs), np.random.default_rng(seed))
    rows: list[tuple[PastTrial, str]] = []
    for number, kind in enumerate(kinds):
        history = [past for past, _ in rows]
        rng = np.random.default_rng([seed, number])
        plan = plan_trial(kind, study, songs, history, votes, rng, np.zeros(0, np.int64))
        assert plan is not None
        heard_songs = tuple(stimulus.song for stimulus in plan.stimuli)
        if plan.kind == "real":
            votes.add(*heard_songs, "a")
        if plan.gold:
            damages = [bool(stimulus.damage) for stimulus in plan.stimuli]
            assert {"a": [False, True], "b": [True, False], "tie": [False, False]}[plan.gold] == damages
            assert heard_songs[0] == heard_songs[1]
        past = PastTrial(
            trial_id=f"{number}", kind=plan.kind, songs=heard_songs, is_vote=True, repeat_of=plan.repeat_of
        )
        rows.append((past, plan.gold))
    return rows


def test_a_tenth_to_a_seventh_of_the_trials_are_controls() -> None:
    study, songs, votes = Study(name="s", trials=TrialConfig(count=40)), catalog(16, 2), VoteLog(16)
    golds = set()
    for seed in range(10):
        rows = session(study, songs, seed, votes)
        kinds = [past.kind for past, _ in rows]
        assert kinds[:3] == ["training"] * 3
        controls = kinds[3:].count("gold") + kinds[3:].count("repeat")
        assert 0.10 <= controls / 40 <= 0.15
        golds |= {gold for past, gold in rows if past.kind == "gold"}
        pairs = [frozenset(past.songs) for past, _ in rows if past.kind == "real"]
        assert len(pairs) == len(set(pairs))
        by_id = {past.trial_id: (place, past) for place, (past, _) in enumerate(rows)}
        for place, (past, _) in enumerate(rows):
            if past.kind == "repeat":
                old_place, old = by_id[past.repeat_of]
                assert past.songs == old.songs[::-1]
                assert place - old_place >= MIN_REPEAT_DISTANCE
    assert golds == {"a", "b", "tie"}


def test_every_song_is_as_often_on_the_left_as_on_the_right() -> None:
    study, songs, votes = Study(name="s", trials=TrialConfig(count=40, training=0)), catalog(10), VoteLog(10)
    for seed in range(8):
        session(study, songs, seed, votes)
    first = np.bincount([answer[0] for answer in votes.answers], minlength=10)
    second = np.bincount([answer[1] for answer in votes.answers], minlength=10)
    assert np.abs(first - second).max() <= 6
    assert (first + second).min() > 0


@pytest.mark.parametrize("items", [1, 2, 4, 7, 30, 400])
def test_no_trial_is_announced_that_cannot_come(items: int) -> None:
    kinds = trial_kinds(TrialConfig(count=60, training=0), "pair", items, np.random.default_rng(0))
    assert kinds.count("real") == min(items, 60 - kinds.count("gold") - kinds.count("repeat"))
    assert len(kinds) <= 60


def test_pairs_by_rule(tmp_path: Path) -> None:
    for name, hertz in (("base", 400.0), ("aligned", 1000.0)):
        write_songs(tmp_path / name, prompts=2, per_prompt=2, hertz=hertz, seconds=1)
    songs = [
        song
        for name in ("base", "aligned")
        for song in read_listened_songs(str(tmp_path / name), name, tmp_path)
    ]
    counts = {rule: len(song_pairs(songs, rule)) for rule in ("across", "matched", "within", "all")}  # type: ignore[arg-type]
    assert counts == {"across": 8, "matched": 4, "within": 4, "all": 12}
    for first, second in song_pairs(songs, "matched"):
        assert songs[first].song == songs[second].song
        assert songs[first].system != songs[second].system
    with pytest.raises(DataError, match="pairs=across: no two different songs"):
        song_pairs(songs[:4], "across")
    with pytest.raises(DataError, match="pairs=within"):
        song_pairs([songs[0], songs[2], songs[0]], "within")  # a song against itself is no pair


def test_plain_folders_pair_by_file_name(tmp_path: Path) -> None:
    for folder, hertz in (("one", 300), ("two", 500)):
        audio.write(tmp_path / folder / "waltz.flac", sine(hertz, 1.0))
    songs = [
        song for name in ("one", "two") for song in read_listened_songs(str(tmp_path / name), name, tmp_path)
    ]
    assert [song.song for song in songs] == ["one/waltz.flac", "two/waltz.flac"]
    assert song_pairs(songs, "matched") == ((0, 1),)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no songs"):
        read_listened_songs(str(tmp_path / "empty"), "x", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_listened_songs(str(tmp_path / "gone"), "x", tmp_path)
    write_songs(tmp_path / "songs", prompts=1, seconds=1)
    (tmp_path / "songs" / "audio" / "p00.001.flac").unlink()
    with pytest.raises(DataError, match=r"p00\.001 has no audio"):
        read_listened_songs(str(tmp_path / "songs"), "x", tmp_path)


def test_names_of_systems() -> None:
    assert system_names(["runs/a", "runs/b"], []) == ("a", "b")
    assert system_names(["x/songs", "y/songs"], []) == ("x/songs", "y/songs")
    with pytest.raises(DataError, match="1 names for 2 folders"):
        system_names(["a", "b"], ["one"])
    with pytest.raises(DataError, match="same name"):
        system_names(["a", "b"], ["one", "one"])
