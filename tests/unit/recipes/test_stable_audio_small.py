"""Stable Audio 3 with the plain attention of the small network, in one process: prepare, train, and a round."""

import json

import numpy as np
import pytest
from support.launch import rows, verb
from support.model_matrix import WEIGHTS
from support.stable_audio3 import write_published

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.songs import SONGS
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

TRAIN = ("steps=3", "global_batch=2", "per_device=2", "learning_rate=1e-3", "save_every=3", "trackers=[]")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_published(folder / "model", differential=False, audible=True)
    for name, texts in (("mining", ("slow rock", "metal")), ("evaluation", ("ambient", "jazz"))):
        lines = [{"id": f"{name[0]}{i}", "text": text, "duration_s": 1.0} for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def model(work):
    return (
        "model.name=stable_audio_3",
        f"model.args.checkpoint={work / 'model'}",
        "model.args.headroom_s=0.4",
    )


def test_a_folder_of_songs_is_prepared_and_trained_on(work):
    (work / "songs").mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 8000)).astype(np.float32)
    audio.write(work / "songs" / "one.flac", Clip(samples=noise, sample_rate=4000))
    verb("prepare", *model(work), f"songs={work / 'songs'}", f"out={work / 'data'}", "valid_share=0")
    (row,) = tables.read_rows(work / "data", SONGS)
    assert (row.error, row.frames) == ("", 50)
    verb(
        "train", *model(work), f"data.songs={work / 'data'}", f"out={work / 'sft'}", "objective.name=flow_matching",
        *(f"train.{word}" for word in TRAIN), *WEIGHTS["dora"],
    )  # fmt: skip
    assert len(rows(work / "sft")) == 3


@pytest.mark.parametrize("weights", ["dora", "int8"])
def test_a_round_goes_from_prompts_to_the_report(work, weights):
    out = work / f"round-{weights}"
    verb(
        "round", *model(work), f"out={out}", f"mining_prompts={work / 'mining.jsonl'}",
        f"evaluation_prompts={work / 'evaluation.jsonl'}", "candidates=3", "evaluation_samples=1",
        "sample.sampling.solver=euler", "sample.sampling.steps=2", "sample.sampling.log_snr={}",
        "score.scorers=[production]", "mine.axes=[production.balance]",
        "mine.rule.args.min_axis_margin=-9", "mine.rule.args.min_margin=0.01",
        "train.objective.args.beta=20", *(f"train.train.{word}" for word in TRAIN),
        *(word.replace("train.", "train.train.", 1) for word in WEIGHTS[weights]), "evaluate.listen=0",
    )  # fmt: skip
    assert (out / "report" / "report.json").is_file()
    steps = rows(out / "round-1" / "train")
    assert steps[0]["margin"] == 0.0 != steps[-1]["margin"]
