"""Mining through the command line: rules, ratings, soft labels, and what can go wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffdpo import audio
from diffdpo.cli import app
from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS
from diffdpo.data.ratings import MINED_SOURCE, RATINGS
from diffdpo.data.samples import SAMPLES, SampleRow
from diffdpo.data.scores import SCORES, Grid, newest_grid, read_windows, score_rows
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

SONG = Path(__file__).parents[1] / "data" / "galactic_temple.ogg"

runner = CliRunner()
MELODY, SOUND = "harmony.key", "rhythm.pulse"
SONGS = {  # of each prompt: (melody, sound)
    "p": {"a": (9.0, 5.0), "b": (5.0, 9.0), "c": (4.0, 4.0), "d": (0.0, 0.0)},
    "q": {"a": (1.0, 2.0), "b": (2.0, 1.0)},
    "r": {},
}


def verb(*words, code=0):
    """A verb in this process; the output of a mistake is one line."""
    result = runner.invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.stderr
    if code == 0:
        return result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return error


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Songs with known scores, without sound: `mine` looks at tables only."""
    folder = tmp_path_factory.mktemp("mining")
    samples, scores = folder / "samples", folder / "scores"
    songs, rows = [], []
    for prompt, of_prompt in SONGS.items():
        for name, values in of_prompt.items():
            row = SampleRow(
                sample_id=f"{prompt}.{name}",
                prompt_id=prompt,
                group=f"group {prompt}",
                sha256=f"sha-{prompt}-{name}",
            )
            songs.append(row)
            for axis, value in zip((MELODY, SOUND), values, strict=True):
                scorer = axis.split(".")[0]
                rows += score_rows(f"sha-{prompt}-{name}", "1", scorer, "v", [(axis, value)])
    tables.append(samples, SAMPLES, songs)
    prompts = [{"id": p, "text": p, "duration_s": 1.0, "group": f"group {p}"} for p in SONGS]
    (samples / "prompts.jsonl").write_text("\n".join(json.dumps(prompt) for prompt in prompts))
    tables.append(scores, SCORES, rows)
    (scores / "manifest.json").write_text(json.dumps({"scorers": {"harmony": "v", "rhythm": "v"}}))
    return folder


@pytest.fixture
def mine(world, tmp_path):
    """Runs `mine`; returns its manifest, pairs and ratings, or its error."""

    def run(*words, code=0):
        out = tmp_path / "mined"
        said = verb(
            "mine", f"samples=[{world / 'samples'}]", f"scores={world / 'scores'}", f"out={out}", *words,
            code=code,
        )  # fmt: skip
        if code:
            return said
        manifest = json.loads((out / "manifest.json").read_text())
        return manifest, tables.read_rows(out, PAIRS), tables.read_rows(out, RATINGS)

    return run


def test_pairs_and_ratings_stand_side_by_side(mine):
    manifest, pairs, rated = mine("rule.name=per_axis", "rule.args.tolerance=.inf")
    assert {(row.winner, row.loser, row.axis) for row in pairs} == {
        ("p.a", "p.d", MELODY), ("p.b", "p.d", SOUND), ("q.b", "q.a", MELODY), ("q.a", "q.b", SOUND),
    }  # fmt: skip
    assert manifest["pairs"] == 4
    assert manifest["pairs_by_axis"] == {MELODY: 2, SOUND: 2}
    assert manifest["axes"] == [MELODY, SOUND]
    assert manifest["candidates"] == manifest["ratings"] == 6
    assert set(manifest["skipped"]) == {"r"}
    by_id = {row.sample_id: row for row in rated}
    assert by_id["p.a"].rating == pytest.approx(by_id["p.b"].rating)
    assert by_id["p.a"].rating > by_id["p.c"].rating > by_id["p.d"].rating
    assert [by_id[name].rating for name in ("q.a", "q.b")] == pytest.approx([0, 0])
    assert sum(row.rating for row in rated) == pytest.approx(0)
    assert {row.source for row in rated} == {MINED_SOURCE}
    assert by_id["p.a"].group == "group p"


def test_ratings_alone_need_no_pairs(mine):
    manifest, pairs, rated = mine("pairs=false", f"weights={{{MELODY}: 0}}", f"axes=[{MELODY}, {SOUND}]")
    assert (manifest["pairs"], manifest["pairs_by_axis"], pairs) == (0, {}, [])
    assert manifest["ratings"] == len(rated) == 6
    by_id = {row.sample_id: row.rating for row in rated}
    assert by_id["q.a"] > 0 > by_id["q.b"]  # sound alone counts


def test_a_rule_without_pairs_is_a_mistake_unless_ratings_are_all_that_is_wanted(mine, tmp_path):
    assert "no pairs mined from 6 candidates" in mine("rule.args.min_margin=9", code=2)
    assert not (tmp_path / "mined" / RATINGS.folder).exists()
    assert not (tmp_path / "mined" / "manifest.json").exists()


def test_mining_again_in_the_same_folder_returns_at_once(mine, tmp_path):
    mine()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mined").rglob("*.parquet")}
    mine()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mined").rglob("*.parquet")} == before


def test_soft_labels_grow_with_the_margin(mine):
    words = ("rule.name=pareto", "rule.args={losers: dominated, pairs_per_prompt: 9}")
    _, pairs, _ = mine(*words, "soft_label_temperature=1")
    margin = {(r.winner, r.loser): sum(r.margins.values()) / 2 for r in pairs}
    label = {(r.winner, r.loser): r.soft_label for r in pairs}
    assert len(pairs) == 4
    assert sorted(margin, key=margin.get) == sorted(label, key=label.get)
    assert all(0.5 < p < 1 for p in label.values())


def test_a_union_of_rules_is_written_in_one_line_and_capped(mine):
    rules = "rule={name: union, args: {rules: [cross_pair, {name: per_axis, args: {tolerance: .inf}}]}}"
    manifest, pairs, _ = mine(rules)
    assert manifest["pairs_by_axis"] == {"several": 2, MELODY: 1, SOUND: 1}
    assert {row.rule for row in pairs} == {"cross_pair", "per_axis"}


def test_too_many_pairs_are_cut_to_the_widest_of_each_axis(mine):
    manifest, pairs, _ = mine("rule.name=per_axis", "rule.args.tolerance=.inf", "max_pairs=2")
    assert manifest["pairs_by_axis"] == {MELODY: 1, SOUND: 1}
    assert {row.prompt_id for row in pairs} == {"p"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rule.name=paretto"], "unknown rule 'paretto'. Did you mean 'pareto'?"),
        (["rule={name: union}"], "no rules"),
        (["rule.name=cross_pair", "rule.args.couples=[[harmony.key]]"], "two different axes"),
        (["rule.name=cross_pair", "rule.args.couples=[[harmony.key, harmony.tuning]]"], "'harmony.tuning' is not"),
        (["weights={harmony.keys: 2}"], "Did you mean 'harmony.key'?"),
        (["weights={harmony.key: -2}"], "weights.harmony.key must be at least 0"),
        (["soft_label_temperature=-1"], "soft_label_temperature must be at least 0, got -1"),
        (["max_pairs=-1"], "max_pairs must be at least 0, got -1"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(mine, words, says):
    assert says in mine(*words, code=2)


@pytest.fixture(scope="module")
def takes(tmp_path_factory):
    """Of each prompt two takes of a real song, 16 s; the second has 3 s of noise or silence from second 8 on.

    In `other` the second take is another part of the song.
    """
    folder = tmp_path_factory.mktemp("takes") / "samples"
    songs = []
    for prompt, start, defect in (("noise", 20.0, 0.1), ("silence", 20.0, 0.0), ("other", 90.0, 0.1)):
        intact = audio.read(SONG, start_s=20.0, seconds=16.0)
        damaged = audio.read(SONG, start_s=start, seconds=16.0).samples.copy()
        begin, end = 8 * intact.sample_rate, 11 * intact.sample_rate
        hiss = np.random.default_rng(0).normal(0, 1, damaged[:, begin:end].shape).astype(np.float32)
        damaged[:, begin:end] = damaged[:, begin:end] * (defect > 0) + np.float32(defect) * hiss
        clips = (intact, Clip(samples=damaged, sample_rate=intact.sample_rate))
        for number, clip in enumerate(clips):
            name = f"{prompt}.{number:03d}"
            audio.write(folder / "audio" / f"{name}.flac", clip)
            sha = audio.file_sha256(folder / "audio" / f"{name}.flac")
            songs.append(SampleRow(sample_id=name, prompt_id=prompt, group=prompt, sha256=sha))
    tables.append(folder, SAMPLES, songs)
    prompts = [{"id": p, "text": p, "duration_s": 16.0} for p in ("noise", "silence", "other")]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(prompt) for prompt in prompts))
    verb("score", *score_words(folder), "window_s=3", "hop_s=1")
    return folder


def score_words(samples):
    return f"samples=[{samples}]", f"out={samples.parent / 'scores'}", "scorers=[harmony, rhythm, production]"


def mined_spans(takes, out, *words):
    verb(
        "mine", f"samples=[{takes}]", f"scores={takes.parent / 'scores'}", f"out={out}",
        "axes=[harmony.key, harmony.tuning, production.balance]", "rule.args.min_axis_margin=-9",
        "rule.args.min_margin=0.1", *words,
    )  # fmt: skip
    return {row.winner: list(row.spans) for row in tables.read_rows(out, PAIRS)}


def test_a_defect_of_three_seconds_in_a_real_song_is_found(takes, tmp_path):
    spans = mined_spans(takes, tmp_path / "m", "spans={}")
    for prompt in ("noise", "silence"):
        ((start, stop),) = spans[f"{prompt}.000"]
        assert 7 <= start <= 8, "not later than it begins, at most a second early"
        assert 11 <= stop <= 12
    holding = [span for span in spans["other.000"] if span[0] <= 8 and span[1] >= 11]
    assert len(holding) == 1, "between different songs too, whatever else differs"
    assert json.loads((tmp_path / "m" / "manifest.json").read_text())["pairs_with_spans"] == 3


def test_without_spans_pairs_are_about_whole_songs(takes, tmp_path):
    assert mined_spans(takes, tmp_path / "m") == {
        "noise.000": [], "silence.000": [], "other.000": [],
    }  # fmt: skip


def test_a_window_is_scored_once_and_other_windows_are_added(takes):
    scores = takes.parent / "scores"
    before = {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")}
    said = verb("score", *score_words(takes), "window_s=3", "hop_s=1")
    assert {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")} == before
    assert "no windows for rhythm: it needs 4 s, window_s is 3" in said
    verb("score", *score_words(takes))  # whole songs only: the windows stay known
    assert newest_grid(scores) == Grid(3, 1)
    shas = [row.sha256 for row in tables.read_rows(takes, SAMPLES)]
    windows = read_windows(scores, shas[:1])
    assert list(windows) == shas[:1]
    assert sorted(windows[shas[0]]) == [(float(s), s + 3.0) for s in range(14)]
    axes = {"harmony.key", "harmony.consonance", "harmony.tuning", "production.balance"}
    assert set(windows[shas[0]][0.0, 3.0]) == axes
    whole = tables.read_rows(scores, SCORES)
    verb("score", *score_words(takes), "window_s=5", "hop_s=5")
    assert newest_grid(scores) == Grid(5, 5)
    assert sorted(read_windows(scores, shas)[shas[0]]) == [
        (0.0, 5.0),
        (5.0, 10.0),
        (10.0, 15.0),
        (11.0, 16.0),
    ]
    assert tables.read_rows(scores, SCORES) == whole
    verb("score", *score_words(takes), "window_s=3", "hop_s=1")
    assert read_windows(scores, shas[:1]) == windows


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["window_s=-1"], "window_s must be at least 0, got -1"),
        (["window_s=0.5"], "no scorer scores windows of 0.5 s"),
    ],
)
def test_windows_that_cannot_be_scored_are_refused(takes, words, says):
    assert says in verb("score", *score_words(takes), *words, code=2)


def test_spans_without_windows_say_how_to_get_them(mine):
    assert "run `diffdpo score` with window_s=5 first" in mine("rule.name=per_axis", "spans={}", code=2)
    assert "spans.min_margin must be a positive number" in mine("spans.min_margin=0", code=2)
