"""Mining through the command line: rules, ratings, soft labels, and what can go wrong."""

import json

import pytest
from typer.testing import CliRunner

from diffdpo.cli import app
from diffdpo.data import ratings, tables
from diffdpo.data.pairs import KEY, TABLE
from diffdpo.data.samples import TABLE as SAMPLES
from diffdpo.data.scores import TABLE as SCORES
from diffdpo.data.scores import score_rows

runner = CliRunner()
MELODY, SOUND = "harmony.key", "production.balance"
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
        return result.stdout
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
            row = {"sample_id": f"{prompt}.{name}", "prompt_id": prompt, "group": f"group {prompt}"}
            songs.append(row | {"sha256": f"sha-{prompt}-{name}", "error": ""})
            for axis, value in zip((MELODY, SOUND), values, strict=True):
                scorer = axis.split(".")[0]
                rows += score_rows(f"sha-{prompt}-{name}", "1", scorer, "v", [(axis, value)])
    tables.append(samples / SAMPLES, songs)
    prompts = [{"id": p, "text": p, "duration_s": 1.0, "group": f"group {p}"} for p in SONGS]
    (samples / "prompts.jsonl").write_text("\n".join(json.dumps(prompt) for prompt in prompts))
    tables.append(scores / SCORES, rows)
    (scores / "manifest.json").write_text(json.dumps({"scorers": {"harmony": "v", "production": "v"}}))
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
        return manifest, tables.read(out / TABLE, KEY), tables.read(out / ratings.TABLE, ratings.KEY)

    return run


def test_pairs_and_ratings_stand_side_by_side(mine):
    manifest, pairs, rated = mine("rule.name=per_axis", "rule.args.tolerance=.inf")
    assert {(row["winner"], row["loser"], row["axis"]) for row in pairs} == {
        ("p.a", "p.d", MELODY), ("p.b", "p.d", SOUND), ("q.b", "q.a", MELODY), ("q.a", "q.b", SOUND),
    }  # fmt: skip
    assert manifest["pairs"] == 4
    assert manifest["pairs_by_axis"] == {MELODY: 2, SOUND: 2}
    assert manifest["axes"] == [MELODY, SOUND]
    assert manifest["candidates"] == manifest["ratings"] == 6
    assert set(manifest["skipped"]) == {"r"}
    by_id = {row["sample_id"]: row for row in rated}
    assert by_id["p.a"]["rating"] == pytest.approx(by_id["p.b"]["rating"])
    assert by_id["p.a"]["rating"] > by_id["p.c"]["rating"] > by_id["p.d"]["rating"]
    assert [by_id[name]["rating"] for name in ("q.a", "q.b")] == pytest.approx([0, 0])
    assert sum(row["rating"] for row in rated) == pytest.approx(0)
    assert {row["source"] for row in rated} == {ratings.MINED}
    assert by_id["p.a"]["group"] == "group p"


def test_ratings_alone_need_no_pairs(mine):
    manifest, pairs, rated = mine("pairs=false", f"weights={{{MELODY}: 0}}", f"axes=[{MELODY}, {SOUND}]")
    assert (manifest["pairs"], manifest["pairs_by_axis"], pairs) == (0, {}, [])
    assert manifest["ratings"] == len(rated) == 6
    by_id = {row["sample_id"]: row["rating"] for row in rated}
    assert by_id["q.a"] > 0 > by_id["q.b"]  # sound alone counts


def test_a_rule_without_pairs_is_a_mistake_unless_ratings_are_all_that_is_wanted(mine, tmp_path):
    assert "no pairs mined from 6 candidates" in mine("rule.args.min_margin=9", code=2)
    assert not (tmp_path / "mined" / ratings.TABLE).exists()
    assert not (tmp_path / "mined" / "manifest.json").exists()


def test_mining_again_in_the_same_folder_returns_at_once(mine, tmp_path):
    mine()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mined").rglob("*.parquet")}
    mine()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mined").rglob("*.parquet")} == before


def test_soft_labels_grow_with_the_margin(mine):
    words = ("rule.name=pareto", "rule.args={losers: dominated, pairs_per_prompt: 9}")
    _, pairs, _ = mine(*words, "soft_label_temperature=1")
    margin = {(r["winner"], r["loser"]): sum(json.loads(r["margins"]).values()) / 2 for r in pairs}
    label = {(r["winner"], r["loser"]): r["soft_label"] for r in pairs}
    assert len(pairs) == 4
    assert sorted(margin, key=margin.get) == sorted(label, key=label.get)
    assert all(0.5 < p < 1 for p in label.values())


def test_a_union_of_rules_is_written_in_one_line_and_capped(mine):
    rules = "rule={name: union, args: {rules: [cross_pair, {name: per_axis, args: {tolerance: .inf}}]}}"
    manifest, pairs, _ = mine(rules)
    assert manifest["pairs_by_axis"] == {"several": 2, MELODY: 1, SOUND: 1}
    assert {row["rule"] for row in pairs} == {"cross_pair", "per_axis"}


def test_too_many_pairs_are_cut_to_the_widest_of_each_axis(mine):
    manifest, pairs, _ = mine("rule.name=per_axis", "rule.args.tolerance=.inf", "max_pairs=2")
    assert manifest["pairs_by_axis"] == {MELODY: 1, SOUND: 1}
    assert {row["prompt_id"] for row in pairs} == {"p"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rule.name=paretto"], "unknown rule 'paretto'. Did you mean 'pareto'?"),
        (["rule={name: union}"], "no rules"),
        (["rule.name=cross_pair", "rule.args.couples=[[harmony.key]]"], "two different axes"),
        (["rule.name=cross_pair", "rule.args.couples=[[harmony.key, harmony.tuning]]"], "'harmony.tuning' is not"),
        (["weights={harmony.keys: 2}"], "Did you mean 'harmony.key'?"),
        (["weights={harmony.key: -2}"], "weights must not be negative"),
        (["soft_label_temperature=-1"], "soft_label_temperature must not be negative"),
        (["max_pairs=-1"], "max_pairs must not be negative"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(mine, words, says):
    assert says in mine(*words, code=2)
