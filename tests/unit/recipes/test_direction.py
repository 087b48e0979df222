"""`diffdpo direction fit` from scored songs: which songs are the halves, and that the direction is of these."""

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
from diffdpo.recipes.contrast_songs import ContrastOptions, read_halves
from diffdpo.runs import finish

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
    better, worse = read_halves(model, [str(first), str(second)], str(scores), AXIS, ContrastOptions())
    assert names(better) == [f"positive/p{name}" for name in ("00.000", "00.004", "02.000")]
    assert names(worse) == [f"negative/p{name}" for name in ("00.001", "00.003", "02.000/1")]
    assert [song.group for song in better] == ["p00", "p00", "p02"]
    assert torch.equal(worse[2].latents, read_latents(Samples(second).latents("p02.000")))
    better, worse = read_halves(
        model, [str(first)], str(scores), AXIS, ContrastOptions(max_songs=1, max_frames=9)
    )
    assert names(better + worse) == ["positive/p00.000", "negative/p00.001"]
    assert better[0].latents.shape == (9, 8)


def test_songs_that_do_not_differ_are_one_line(bundle, tmp_path):
    samples = write_samples(tmp_path / "songs", prompts=3, per_prompt=1)
    model = MODELS["tiny"](bundle=str(bundle)).load()
    scores = write_values(tmp_path / "scores", {f"songs-p{k:02d}.000": float(k) for k in range(3)})
    with pytest.raises(DataError, match=r"differ in structure\.form"):
        read_halves(model, [str(samples)], str(scores), AXIS, ContrastOptions())
    with pytest.raises(DataError, match=r"no score of rhythm\.pulse"):
        read_halves(model, [str(samples)], str(scores), "rhythm.pulse", ContrastOptions())


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
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, words, message):
    result = command(*words, f"out={tmp_path / 'd.safetensors'}")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
