"""`diffdpo direction fit` from scored songs: which songs are the halves, and that the direction is of these."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.songs import write_samples
from typer.testing import CliRunner

from diffdpo.cli import app
from diffdpo.data import tables
from diffdpo.data.latents import read_latents, write_latents
from diffdpo.data.samples import SAMPLES, Samples, open_samples
from diffdpo.data.scores import SCORES, score_rows
from diffdpo.errors import DataError
from diffdpo.models import MODELS
from diffdpo.recipes.contrast_songs import ContrastOptions, read_contrast, read_halves
from diffdpo.runs import finish
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.directions import read_direction

AXIS = "structure.form"


def write_values(folder, values):
    """Scores of songs by hash on the axis."""
    rows = [
        row
        for sha, value in values.items()
        for row in score_rows(sha, "1", "structure", "f" * 16, [(AXIS, value)])
    ]
    folder.mkdir()
    tables.append(folder, SCORES, rows)
    finish(folder, scorers={"structure": "f" * 16})
    return folder


def other_run(root):
    """A finished folder of another command."""
    (root / "run").mkdir()
    finish(root / "run", rounds=1)
    return root / "run"


def command(*words):
    return CliRunner().invoke(app, ["direction", "fit", *map(str, words)])


def names(songs):
    return [song.request.sample_id for song in songs]


def test_halves_are_of_each_prompts_own_songs(bundle, tmp_path):
    first, second = (
        write_samples(tmp_path / name, prompts=4, per_prompt=n) for name, n in (("a", 5), ("b", 1))
    )
    values = {f"a-p00.{k:03d}": value for k, value in enumerate((4.0, 1.0, 3.0, 2.0, 9.0))}
    values |= {f"a-p01.{k:03d}": 7.0 for k in range(5)}  # all alike: no song is better
    values |= {
        "a-p02.000": 0.5,
        "a-p02.001": float("nan"),
        "b-p02.000": 0.1,
    }  # of two folders, one without a number
    scores = write_values(tmp_path / "scores", values)
    model = MODELS["tiny"](bundle=str(bundle)).load()
    better, worse = read_halves(
        model, [str(first), str(second)], str(scores), AXIS, ContrastOptions(songs=tmp_path)
    )
    assert names(better) == [f"positive/p{name}" for name in ("00.000", "00.004", "02.000")]
    assert names(worse) == [f"negative/p{name}" for name in ("00.001", "00.003", "02.000/1")]
    assert [song.group for song in better] == ["p00", "p00", "p02"]
    assert torch.equal(worse[2].latents, read_latents(Samples(second).latents("p02.000")))
    better, worse = read_halves(
        model, [str(first)], str(scores), AXIS, ContrastOptions(max_songs=1, max_frames=9, songs=tmp_path)
    )
    assert names(better + worse) == [
        "positive/p00.004",
        "negative/p00.001",
    ]  # the best and the worst of the first
    assert better[0].latents.shape == (9, 8)


def test_equal_songs_are_not_set_against_each_other_and_a_sound_counts_once(bundle, tmp_path, capsys):
    samples = write_samples(tmp_path / "songs", prompts=2, per_prompt=5)
    values = {f"songs-p00.{k:03d}": float(k == 4) for k in range(5)}  # one is better than four that are alike
    values |= {f"songs-p01.{k:03d}": float(k) for k in range(3)}
    scores = write_values(tmp_path / "scores", values)
    model = MODELS["tiny"](bundle=str(bundle)).load()
    better, worse = read_halves(model, [str(samples)] * 2, str(scores), AXIS, ContrastOptions(songs=tmp_path))
    assert names(better) == ["positive/p00.004", "positive/p01.002"]
    assert names(worse) == ["negative/p00.000", "negative/p01.000"]
    assert f"{samples}: 2 of 10 songs have no number on {AXIS} and are left out" in capsys.readouterr().err


def test_songs_that_do_not_differ_are_one_line(bundle, tmp_path):
    samples = write_samples(tmp_path / "songs", prompts=3, per_prompt=1)
    model = MODELS["tiny"](bundle=str(bundle)).load()
    scores = write_values(tmp_path / "scores", {f"songs-p{k:02d}.000": float(k) for k in range(3)})
    with pytest.raises(DataError, match=r"differ in structure\.form"):
        read_halves(model, [str(samples)], str(scores), AXIS, ContrastOptions(songs=tmp_path))
    other = write_samples(tmp_path / "other", prompts=3, per_prompt=1)
    with pytest.raises(DataError, match=r"no score of structure\.form for the songs of .*other"):
        read_halves(model, [str(samples), str(other)], str(scores), AXIS, ContrastOptions(songs=tmp_path))
    with pytest.raises(DataError, match="no folder of `diffdpo score`"):
        read_halves(model, [str(samples)], str(other_run(tmp_path)), AXIS, ContrastOptions(songs=tmp_path))
    with pytest.raises(DataError, match=r"no score of rhythm\.pulse"):
        read_halves(model, [str(samples)], str(scores), "rhythm.pulse", ContrastOptions(songs=tmp_path))


def test_the_direction_is_that_of_two_folders_with_the_same_songs(bundle, tmp_path):
    """Songs 0 and 2 of each prompt are the better half, and louder, so that probes tell them apart."""
    samples = write_samples(tmp_path / "songs", prompts=12, per_prompt=4)
    rows, values = open_samples(samples).rows(), {}
    for row in rows:
        is_better = row.sample_id[-1] in "02"
        latents = read_latents(Samples(samples).latents(row.sample_id))
        write_latents(Samples(samples).latents(row.sample_id), latents + (3.0 if is_better else 0.0))
        values[row.sha256] = float(is_better) + 0.1 * int(row.sample_id[-1])
    scores = write_values(tmp_path / "scores", values)
    for half, numbers in (("better", "02"), ("worse", "13")):
        shutil.copytree(samples, tmp_path / half)
        part = [row for row in rows if row.sample_id[-1] in numbers]
        tables.replace(tmp_path / half, SAMPLES, part)
    settings = [f"model.args.bundle={bundle}", "times=[0.3]", "sampling.batch=8"]
    result = command(
        f"samples={samples}",
        f"scores={scores}",
        f"axis={AXIS}",
        f"out={tmp_path / 'd.safetensors'}",
        *settings,
    )
    assert result.exit_code == 0, result.output
    assert "probes 100% right on other songs" in result.output
    result = command(
        f"positive={tmp_path / 'better'}", f"negative={tmp_path / 'worse'}", f"out={tmp_path / 'e.safetensors'}",
        *settings,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert read_direction(tmp_path / "d.safetensors").provenance.axis == AXIS
    assert read_direction(tmp_path / "e.safetensors").provenance.axis == ""
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in "de")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either pair"),
        (["positive=a"], "give either pair"),
        (["positive=a", "negative=b", "scores=s"], "give either pair"),
        (["samples=a"], "goes with scores"),
        (["samples=a", "scores=s", "negative=b"], "goes with scores"),
        (["samples=a", "scores=s", "axis=note.key"], "note.key judges"),
        (["samples=a", "scores=s", "axis=note.kez"], "unknown axis 'note.kez'"),
        (["samples=a", "scores=s", "out=folder.safetensors"], "a folder stands where the file would be"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    result = command("out=d.safetensors", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_songs_against_themselves_and_heads_that_do_not_divide_are_one_line(bundle, tmp_path):
    samples = write_samples(tmp_path / "songs", prompts=12, per_prompt=1)
    settings = [f"model.args.bundle={bundle}", "times=[0.3]", f"out={tmp_path / 'd.safetensors'}"]
    result = command(f"positive={samples}", f"negative={samples}", *settings)
    assert result.exit_code == 2
    assert "the songs of both classes are the same" in result.stderr
    other = write_samples(tmp_path / "other", prompts=12, per_prompt=1, seed=1)
    result = command(f"positive={samples}", f"negative={other}", "heads=7", *settings)
    assert result.exit_code == 2
    assert "heads=7 do not divide" in result.stderr
    assert not (tmp_path / "d.safetensors").exists()


def test_songs_of_prompts_are_kept_for_a_stopped_command(bundle, tmp_path):
    """A batch that is complete is not sampled again, and the songs are those of a command that never stopped."""
    model = MODELS["tiny"](bundle=str(bundle)).load()
    for side, text in (("positive", "drums"), ("negative", "piano")):
        prompts = [
            {"id": f"{side}{number}", "text": f"{text} {number}", "duration_s": 2} for number in range(4)
        ]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    sources = [str(tmp_path / f"{side}.jsonl") for side in ("positive", "negative")]
    options = ContrastOptions(sampling=SamplingConfig(steps=2, batch=2), songs=tmp_path / "kept")
    whole = read_contrast(model, *sources, options)
    files = sorted((tmp_path / "kept").glob("*/*.safetensors"))
    assert len(files) == 8
    files[0].unlink()
    times = {file: file.stat().st_mtime_ns for file in files[1:]}
    again = read_contrast(model, *sources, options)
    pairs = [(a, b) for one, two in zip(whole, again, strict=True) for a, b in zip(one, two, strict=True)]
    assert len(pairs) == 8
    assert all(torch.equal(a.latents, b.latents) for a, b in pairs)
    assert [file for file in times if file.stat().st_mtime_ns != times[file]] == [
        files[1]
    ]  # of the same batch


def test_songs_of_prompts_are_gone_when_the_direction_is_written(bundle, tmp_path):
    for side in ("positive", "negative"):
        lines = [json.dumps({"id": f"{side}{n}", "text": f"{side} {n}", "duration_s": 2}) for n in range(4)]
        (tmp_path / f"{side}.jsonl").write_text("\n".join(lines))
    result = command(
        *(f"{side}={tmp_path / side}.jsonl" for side in ("positive", "negative")),
        f"out={tmp_path / 'd.safetensors'}", f"model.args.bundle={bundle}", "sampling.steps=2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "d.safetensors",
        "negative.jsonl",
        "positive.jsonl",
    ]
