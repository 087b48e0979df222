"""The verb `audit` from songs to its report, on a small random model; its mistakes are one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.songs import write_samples
from typer.testing import CliRunner

from diffdpo import audio
from diffdpo.cli import app
from diffdpo.config import build_config
from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, SampleRow, open_samples
from diffdpo.data.scores import SCORES
from diffdpo.errors import ConfigError
from diffdpo.recipes import audit, sample, score
from diffdpo.recipes.audit_scores import HALF_SCORES, half_of
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.score import ScoreRun
from diffdpo.scorers import SCORERS
from diffdpo.scorers.engine import score_clips
from diffdpo.scorers.texture import Texture
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

SCORED = "[production, rhythm, beats]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bundle) -> Path:
    """Three prompts with two songs of a second each, one folder of them scored."""
    root = tmp_path_factory.mktemp("audit")
    lines = [{"id": f"p{i}", "text": f"slow rock {i}", "duration_s": 1} for i in range(3)]
    (root / "p.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    words = [f"prompts={root / 'p.jsonl'}", f"out={root / 'songs'}", f"model.args.bundle={bundle}",
             "sampling.steps=2", "per_prompt=3"]  # fmt: skip
    sample.run(build_config(SampleRun, None, words))
    cfg = ScoreRun(samples=[str(root / "songs")], out=str(root / "scores"), scorers=["rhythm"])
    score.run(cfg)
    return root


def run_audit(folder: Path, *words: str):
    words = (f"samples={folder / 'songs'}", f"scorers={SCORED}", "per_prompt=2", *words)
    return CliRunner().invoke(app, ["audit", *words])


def test_an_audit_scores_what_has_no_scores_and_nothing_twice(folder, tmp_path):
    ladder = ("ladder.steps=1", "ladder.guidance=1", "ladder.damage=1", "ladder.per_prompt=1")
    words = (f"out={tmp_path / 'a'}", f"scores=[{folder / 'scores'}]", *ladder)
    result = run_audit(folder, *words)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert (report["n_songs"], report["n_prompts"]) == (6, 3)
    axes = {axis["axis"]: axis for axis in report["axes"]}
    assert axes.keys() == {
        "production.balance",
        "rhythm.pulse",
        "rhythm.tempo",
        "beat.coherence",
        "beat.pulse",
    }
    assert axes["rhythm.pulse"]["convergent_axes"] == ["beat.coherence"]
    assert axes["beat.coherence"]["rungs"].keys() == {"1 step", "guidance 1", "damage 1"}
    assert axes["beat.coherence"]["rungs"]["damage 1"]["count"] == 3
    assert all("3 prompts, 8 are needed" in axis["judgement"]["reasons"] for axis in axes.values())
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (manifest["songs"], manifest["prompts"], manifest["valid"]) == (6, 3, [])
    assert (tmp_path / "a" / "config.yaml").is_file()
    assert (tmp_path / "a" / "report.md").read_text().count("\n| ") > 15
    metrics = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row["axis"] for row in metrics] == list(axes)

    songs = {row.sha256: row for row in open_samples(folder / "songs").rows()}
    first_ids = {f"p{i}.{k:03d}" for i in range(3) for k in range(2)}
    rows = tables.read_rows(tmp_path / "a" / "scores", SCORES)
    given = {(row.sha256, row.axis): row.value for row in tables.read_rows(folder / "scores", SCORES)}
    for row in rows:
        if (row.sha256, row.axis) in given:
            assert row.value == given[row.sha256, row.axis]
    scored = {row.sha256 for row in rows if row.axis == "production.balance"}
    assert {songs[name].sample_id for name in scored & songs.keys()} == first_ids
    assert len(scored - songs.keys()) == 9  # three worse settings of a song each for three prompts
    assert sum(row.scorer == "texture" for row in rows) == 6 * len(Texture.axes)

    files = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.parquet"))}
    sounds = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.flac"))}
    assert len(sounds) == 9
    before = (tmp_path / "a" / "report.json").read_text()
    assert run_audit(folder, *words).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.flac"))} == sounds
    assert {p: t for p, t in files.items() if "worse" not in str(p)} == {
        path: path.stat().st_mtime_ns for path in files if "worse" not in str(path)
    }  # no score was computed
    assert (tmp_path / "a" / "report.json").read_text() == before


def test_the_scores_of_halves_are_those_of_the_halves(folder, tmp_path):
    """By the scorers alone, on the sound cut by hand."""
    assert run_audit(folder, f"out={tmp_path / 'a'}", "scorers=[production]").exit_code == 0
    row = open_samples(folder / "songs").rows()[0]
    clip = audio.read(open_samples(folder / "songs").audio(row.sample_id), with_fold=False)
    scorer = SCORERS["production"]()
    for number, name in enumerate(HALF_SCORES):
        (value,) = [
            score.value
            for score in tables.read_rows(tmp_path / "a" / name, SCORES)
            if score.sha256 == row.sha256 and score.axis == "production.balance"
        ]
        (expected,) = score_clips([half_of(clip, number)], {"production": scorer})
        assert value == pytest.approx(expected.values["production.balance"])


def test_halves_leave_out_nothing_but_a_sample_in_the_middle():
    clip = Clip(samples=np.arange(7, dtype=np.float32)[None], sample_rate=44100)
    assert half_of(clip, 0).samples.tolist() == [[0, 1, 2]]
    assert half_of(clip, 1).samples.tolist() == [[4, 5, 6]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["axes=[rhythm.puls]"], "axes: 'rhythm.puls' is of none of the scorers. Did you mean 'rhythm.pulse'?"),
        (["axes=[note.key]"], "axes: 'note.key' is of none of the scorers."),
        (["scorers=[rythm]"], "unknown scorer 'rythm'. Did you mean 'rhythm'?"),
        (["scores=[EMPTY]"], "no finished scores here; run `diffdpo score` first, or leave scores=[]"),
        (["scores=[NOWHERE]"], "no such folder; make it first with `diffdpo score`"),
        (["worse={few: EMPTY}"], "holds no samples; run `diffdpo sample` first"),
        (["worse={few: HOLLOW}"], "worse.few: HOLLOW holds no song; sample it first, or leave it out"),
        (["worse={few: ALIEN}"], "worse.few: ALIEN shares no prompt with SONGS; sample the same prompts"),
        (["samples=ALIEN"], "an audit compares songs of one prompt, and 0 of 2 prompts have two songs or more"),
        (["per_prompt=1"], "an audit compares songs of one prompt, and 0 of 3 prompts have two songs or more"),
        (["ladder.steps=2"], "ladder.steps=2: the candidates have 2; name fewer, or 0 for none"),
        (["ladder.guidance=7"], "ladder.guidance=7: the candidates have 5; name less, or 0 for none"),
        (["ladder.damage=-1"], "ladder.damage must be at least 0, got -1"),
        (["best_of=[1]"], "best_of: numbers of 2 or more, got [1]"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(folder, tmp_path, words, says):
    write_samples(tmp_path / "alien", prompts=2, per_prompt=1)
    write_samples(tmp_path / "hollow", prompts=1, per_prompt=1)
    tables.append(tmp_path / "hollow", SAMPLES, [SampleRow(sample_id="p00.000", prompt_id="p00", error="x")])
    (tmp_path / "empty").mkdir()
    places = {name: str(tmp_path / name.lower()) for name in ("ALIEN", "HOLLOW", "EMPTY", "NOWHERE")}
    places["SONGS"] = str(folder / "songs")
    for name, place in places.items():
        words, says = [word.replace(name, place) for word in words], says.replace(name, place)
    result = run_audit(folder, f"out={tmp_path / 'a'}", *words)
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert result.output.count("\n") == 1


def test_candidates_of_an_unknown_model_need_folders_of_worse_songs(tmp_path):
    write_samples(tmp_path / "songs", prompts=2, per_prompt=2)
    result = run_audit(tmp_path, f"out={tmp_path / 'a'}", "ladder.steps=1")
    assert result.exit_code == 2
    assert "name folders of worse songs instead, worse={NAME: FOLDER}" in result.output


def test_texture_is_measured_by_hand():
    """White noise is flat, bright and without crest; a low tone is none of these; both are deterministic."""
    rng = np.random.default_rng(0)
    time = np.arange(44_100) / 44_100
    noise = Clip(samples=rng.normal(0, 0.1, (2, 44_100)).astype(np.float32), sample_rate=44_100)
    tone = Clip(samples=np.sin(2 * np.pi * 220 * time).astype(np.float32)[None], sample_rate=44_100)
    silence = Clip(samples=np.zeros((1, 44_100), np.float32), sample_rate=44_100)
    rows = dict(zip(("noise", "tone", "silence"), Texture()([noise, tone, silence]), strict=True))
    names = [axis.partition(".")[2] for axis in Texture.axes]
    values = {name: dict(zip(names, row.tolist(), strict=True)) for name, row in rows.items()}
    assert values["noise"]["flatness"] == pytest.approx(
        -0.577, abs=0.05
    )  # of exponential power: minus Euler's constant
    assert values["tone"]["flatness"] < -5
    assert values["tone"]["centroid"] == pytest.approx(np.log2(220), abs=0.2)
    assert values["noise"]["centroid"] > 12
    assert values["noise"]["treble"] > -3 > values["tone"]["treble"]
    assert values["tone"]["crest"] == pytest.approx(3.01, abs=0.1)
    assert set(values["silence"].values()) == {0.0}


def test_the_configuration_is_checked_before_anything_is_read():
    with pytest.raises(ConfigError, match="no value for samples"):
        build_config(audit.AuditRun, None, ["out=x"])


def test_judging_by_an_axis_of_no_shown_validity_is_one_loud_line(tmp_path):
    """In a round before anything is sampled, and in an evaluation before anything is read."""
    judges = "judges=[musicnn.typicality,note.key,rhythm.tempo]"
    says = "WARNING: the verdict depends on musicnn.typicality, rhythm.tempo, not shown to be valid"
    for name in ("mining", "evaluation"):
        line = {"id": name, "text": name, "duration_s": 1}
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(line)}\n", encoding="utf-8")
    for name in ("a", "b", "s"):
        (tmp_path / name).mkdir()
    commands = {
        "evaluate": [
            f"baseline={tmp_path / 'a'}",
            f"aligned={tmp_path / 'b'}",
            f"scores={tmp_path / 's'}",
            judges,
        ],
        "round": [
            *(f"{name}_prompts={tmp_path / name}.jsonl" for name in ("mining", "evaluation")),
            f"evaluate.{judges}",
            "model.args.bundle=nowhere",
        ],
    }
    for verb, words in commands.items():
        result = CliRunner().invoke(app, [verb, f"out={tmp_path / verb}", *words])
        assert result.exit_code == 2
        assert [line.startswith(says) for line in result.output.splitlines()].count(True) == 1, result.output
    words = [f"out={tmp_path / 'q'}", *commands["evaluate"][:3], "judges=[note.key]"]
    quiet = CliRunner().invoke(app, ["evaluate", *words])
    assert "WARNING" not in quiet.output


def test_all_scorers_but_those_that_are_downloaded_are_audited_by_default():
    downloads = {"songeval", "audiobox", "tunejury", "reward", "prompt_reward", "remote", "prompt_remote"}
    of_packages = {"artefacts", "pitch"}
    assert set(audit.AuditRun(samples="s", out="o").scorers) == set(SCORERS) - downloads - of_packages
