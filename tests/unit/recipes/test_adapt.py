"""The verb `adapt`: rounds follow the ratings, wait for them, and go on where they stopped."""

import json

import pytest

from diffdpo.data import tables
from diffdpo.data.samples import open_samples
from diffdpo.data.votes import OPINIONS, OpinionRow
from diffdpo.errors import ConfigError
from diffdpo.recipes import adapt
from diffdpo.recipes.adapt import AdaptRun, turn_knob
from diffdpo.recipes.sample import SampleRun
from diffdpo.runs import read_json
from diffdpo.sampling.config import SamplingConfig
from diffdpo.text_files import read_jsonl


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"id": "p", "text": "piano, calm", "duration_s": 2}\n')
    stage = SampleRun(out="", prompts="", sampling=SamplingConfig(steps=2))
    return AdaptRun(
        out=str(tmp_path / "run"), prompts=str(tmp_path / "prompts.jsonl"), rounds=2, sample=stage
    )


def values(out):
    return [row["value"] for _, row in read_jsonl(out / "metrics.jsonl")]


def test_rounds_wait_for_ratings_and_go_on_with_them(cfg, capsys):
    out = adapt.run(cfg)
    assert values(out) == [4.5]  # the middle of 1 to 8
    (row,) = open_samples(out / "round-001").rows()
    assert row.sample_id == "p-r001.000"
    assert json.loads(row.sampling)["guidance_scale"] == 4.5
    adapt.run(cfg)
    assert values(out) == [4.5]  # without a rating nothing moves
    assert "rate the songs of" in capsys.readouterr().err
    (out / "ratings.jsonl").write_text('{"sample_id": "p-r001.000", "stars": 2}\n')
    adapt.run(cfg)
    assert len(values(out)) == 2
    assert not (out / "manifest.json").exists()
    folder = out / "listen"
    rows = [
        OpinionRow(
            opinion_id=str(k), source="s", song=f"p-r00{k}.000", scale="thumb", value=value, created_at=k
        )
        for k, value in ((1, -1.0), (2, 1.0))
    ]
    tables.append(folder, OPINIONS, rows)
    with pytest.raises(ConfigError, match="was made with ratings"):
        adapt.run(AdaptRun(**{**vars(cfg), "ratings": str(folder)}))
    (out / "ratings.jsonl").write_text(
        '{"sample_id": "p-r001.000", "stars": 2}\n{"sample_id": "p-r002.000", "thumb": "up"}\n'
    )
    adapt.run(cfg)
    manifest = read_json(out / "manifest.json")
    assert manifest["rounds"] == 2
    assert manifest["best_low"] <= manifest["best"] <= manifest["best_high"]


def test_opinions_of_a_listening_study_are_brought_to_one_scale(cfg, tmp_path):
    folder = tmp_path / "study"
    study = AdaptRun(**{**vars(cfg), "ratings": str(folder), "rounds": 1})
    out = adapt.run(study)
    opinion = OpinionRow(opinion_id="1", source="s", song="p-r001.000", scale="mushra", value=75.0)
    tables.append(folder, OPINIONS, [opinion])
    assert adapt._read_ratings(study, out, 1) == [(1, 0.5)]


def test_a_knob_is_a_number_of_sample():
    stage = turn_knob(SampleRun(out="", prompts=""), "sampling.guidance_scale", 2.5)
    assert stage.sampling.guidance_scale == 2.5
    for knob in ("sampling.nothing", "sampling.solver", "model"):
        with pytest.raises(ConfigError, match=f"knob={knob}"):
            turn_knob(SampleRun(out="", prompts=""), knob, 1.0)


def test_the_range_is_checked():
    with pytest.raises(ValueError, match="low=3 must be below high=2"):
        AdaptRun(out="o", prompts="p", low=3, high=2)
    with pytest.raises(ValueError, match=r"sample\.out is set by the command"):
        AdaptRun(out="o", prompts="p", sample=SampleRun(out="x", prompts=""))
