"""Small random Stable Audio models through the verbs: the whole loop of Stable Audio 3, three steps of Open."""

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from support.launch import rows, verb
from support.stable_audio3 import write_published
from support.stable_audio_open import write_open

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.songs import SONGS
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

SAMPLING = (
    "sampling.solver.name=euler",
    "sampling.log_snr={}",
    "sampling.steps=3",
    "model.args.headroom_s=0.4",
)
TRAIN = (
    "objective.name=dpo", "objective.args.beta=200", "train.global_batch=2", "train.per_device=2",
    "train.learning_rate=1e-3", "train.dropout.prompt=0.3", "train.trackers=[]", "model.args.audio=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stable_audio")
    write_published(folder / "model", audible=True)
    for name, texts in (("mining", ("slow rock", "metal")), ("evaluation", ("ambient", "jazz"))):
        lines = [{"id": f"{name[0]}{i}", "text": text, "duration_s": 1 + i} for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def model(work):
    return "model.name=stable_audio_3", f"model.args.checkpoint={work / 'model'}"


def sample(work, out, prompts, *words):
    return verb(
        "sample", *model(work), f"prompts={work / prompts}.jsonl", f"out={work / out}", *SAMPLING, *words
    )


def export(folder, step):
    return folder / "checkpoints" / f"step-{step:08d}" / "export"


def test_the_whole_loop_of_stable_audio_3(work):
    sample(work, "songs", "mining", "per_prompt=3")
    info = soundfile.info(work / "songs" / "audio" / "m1.000.flac")
    assert (info.samplerate, info.channels, info.frames) == (4000, 2, 8000)
    latents = load_file(work / "songs" / "latents" / "m1.000.safetensors")["latents"]
    assert latents.shape == (60, 8)  # with its headroom
    verb("score", f"samples=[{work / 'songs'}]", f"out={work / 'scores'}", "scorers=[production]")
    verb(
        "mine", f"samples=[{work / 'songs'}]", f"scores={work / 'scores'}", f"out={work / 'pairs'}",
        "axes=[production.balance]", "rule.args.min_axis_margin=-9", "rule.args.min_margin=0.01",
    )  # fmt: skip
    train = (
        "train",
        *model(work),
        f"data.pairs={work / 'pairs'}",
        *TRAIN,
        "train.lora.rank=4",
        "train.save_every=2",
    )
    verb(*train, f"out={work / 'once'}", "train.steps=4")
    verb(*train, f"out={work / 'lora'}", "train.steps=2")
    verb(*train, f"out={work / 'lora'}", "train.steps=4")
    assert rows(work / "lora") == rows(work / "once")
    assert rows(work / "lora")[0]["margin"] == 0.0 != rows(work / "lora")[-1]["margin"]
    verb(*train, f"out={work / 'few'}", "train.steps=3", "model.args.distilled=true", "train.dropout={}")
    assert len(rows(work / "few")) == 3  # a distilled network, at its eight times
    adapter = f"model.args.adapter={export(work / 'lora', 4)}"
    for name, words in (("before", ()), ("after", (adapter,))):
        sample(work, name, "evaluation", *words)
    verb(
        "score",
        f"samples=[{work / 'before'},{work / 'after'}]",
        f"out={work / 'judged'}",
        "scorers=[production]",
    )
    verb(
        "evaluate", f"baseline={work / 'before'}", f"aligned={work / 'after'}", f"scores={work / 'judged'}",
        f"pairs={work / 'pairs'}", f"out={work / 'report'}", "listen=0",
    )  # fmt: skip
    report = json.loads((work / "report" / "report.json").read_text())
    assert report
    changed = [
        load_file(work / name / "latents" / "e0.000.safetensors")["latents"] for name in ("before", "after")
    ]
    assert not torch.equal(*changed)


def test_recordings_are_prepared_and_trained_on_with_in_painting_and_shifted_times(work):
    (work / "recordings").mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 12000)).astype(np.float32)
    audio.write(work / "recordings" / "one.flac", Clip(samples=noise, sample_rate=4000))
    verb("prepare", *model(work), f"out={work / 'data'}", f"songs={work / 'recordings'}", "valid_share=0")
    (row,) = tables.read_rows(work / "data", SONGS)
    assert not row.error
    assert row.frames == 75
    verb(
        "train", *model(work), f"out={work / 'sft'}", f"data.songs={work / 'data'}", "objective.name=flow_matching",
        "train.steps=3", "train.global_batch=1", "train.per_device=1", "train.inpaint={}", "train.trackers=[]",
        "train.timesteps.density=logit_uniform", "train.timesteps.length_shift={}", "train.learning_rate=1e-3",
        "train.gradient_checkpointing=true", "train.save_every=3",
    )  # fmt: skip
    assert len(rows(work / "sft")) == 3
    network = export(work / "sft", 3)
    sample(work, "tuned", "evaluation", f"model.args.network={network}")
    assert (work / "tuned" / "audio" / "e0.000.flac").is_file()


def test_a_distilled_one_is_sampled_in_eight_steps_and_refuses_guidance(work):
    few = ("model.args.distilled=true",)
    error = verb(
        "sample", *model(work), *few, f"prompts={work / 'evaluation.jsonl'}", f"out={work / 'guided'}",
        "sampling.steps=8", code=2,
    )  # fmt: skip
    assert "guidance_scale=1" in error
    sample(
        work, "few_songs", "evaluation", *few, "sampling.guidance_scale=1", "sampling.steps=8",
        "sampling.solver.name=ping_pong",
    )  # fmt: skip
    assert (work / "few_songs" / "audio" / "e0.000.flac").is_file()


def test_stable_audio_open_samples_and_trains_three_steps(work):
    write_open(work / "open", audible=True)
    words = ("model.name=stable_audio_open", f"model.args.checkpoint={work / 'open'}")
    songs, scores, pairs = (work / f"open_{name}" for name in ("songs", "scores", "pairs"))
    verb(
        "sample", *words, f"prompts={work / 'mining.jsonl'}", f"out={songs}", "per_prompt=3", "sampling.steps=3",
    )  # fmt: skip
    shapes = {load_file(path)["latents"].shape for path in (songs / "latents").glob("*.safetensors")}
    assert shapes == {(50, 8)}  # the network's whole window, and the sound cut to what was asked for
    assert soundfile.info(songs / "audio" / "m0.000.flac").frames == 4000
    verb("score", f"samples=[{songs}]", f"out={scores}", "scorers=[production]")
    verb(
        "mine", f"samples=[{songs}]", f"scores={scores}", f"out={pairs}", "rule.args.min_axis_margin=-9",
        "axes=[production.balance]", "rule.args.min_margin=0.01", "gates=false",
    )  # fmt: skip
    train = ("train", *words, f"data.pairs={pairs}", *TRAIN, "train.steps=3", "train.save_every=3")
    verb(*train, f"out={work / 'open_lora'}", "train.lora.rank=4")
    first, *_, last = rows(work / "open_lora")
    assert first["margin"] == 0.0 != last["margin"]
    adapter = export(work / "open_lora", 3)
    verb(
        "sample", *words, f"model.args.adapter={adapter}", f"prompts={work / 'evaluation.jsonl'}",
        f"out={work / 'open_after'}", "sampling.steps=3", "audio=false",
    )  # fmt: skip
    assert len(list((work / "open_after" / "latents").glob("*.safetensors"))) == 2
