"""A song model outside the package goes through every verb, or is refused in one line: nothing here knows it."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from support.launch import CONFIGS, ROOT, environment, rows, same_trajectory
from support.model_contract import STRANGER, on_path
from typer.testing import CliRunner

from diffdpo import audio
from diffdpo.cli import app
from diffdpo.models import MODELS
from diffdpo.sampling.render import Preview, SongAudio, write_song
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

MODEL = "model.name=stranger"
TRAIN = (
    MODEL, "objective.name=dpo", "objective.args.beta=200", "train.steps=3", "train.global_batch=4",
    "train.learning_rate=1e-3", "train.dropout.tags=0.3", "train.dropout.contour=0.3", "train.save_every=3",
    "train.trackers=[]",
)  # fmt: skip
KINDS = {"lora": ("train.lora.rank=4",), "full": ()}


def verb(*words, code=0):
    """A verb in this process; the output of a mistake is one line."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.stderr
    if code == 2:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        return errors[0]
    return result.stdout


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """The distribution where Python finds it, in this process and in those that are launched."""
    folder = shutil.copytree(STRANGER, tmp_path_factory.mktemp("site") / "packages")
    with pytest.MonkeyPatch.context() as patch, on_path(folder):
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.delitem(sys.modules, "stranger", raising=False)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Songs, scores and pairs of the model as it is installed."""
    work = tmp_path_factory.mktemp("stranger")
    lines = [
        {"id": "one", "text": "slow rock", "lyrics": "no times\nat all", "duration_s": 1.5, "bpm": 90},
        {"id": "two", "text": "metal", "negative_text": "jazz", "duration_s": 1.0},
    ]
    (work / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sample(work / "songs", work / "prompts.jsonl", "per_prompt=4")
    verb("score", f"samples=[{work / 'songs'}]", f"out={work / 'scores'}", "scorers=[production]")
    verb(
        "mine",
        f"samples=[{work / 'songs'}]",
        f"scores={work / 'scores'}",
        f"out={work / 'pairs'}",
        "axes=[production.balance]",
        "max_pairs=4",
    )
    return work


def sample(out, prompts, *words, code=0):
    return verb("sample", MODEL, f"prompts={prompts}", f"out={out}", "sampling.steps=3", *words, code=code)


def latents(folder):
    return [load_file(path)["latents"] for path in sorted(folder.glob("latents/*.safetensors"))]


@pytest.fixture(scope="module")
def trained(work):
    """One process: an adapter, and all weights."""
    for kind, words in KINDS.items():
        verb(
            "train",
            f"out={work / kind}",
            f"data.pairs={work / 'pairs'}",
            "train.per_device=4",
            *TRAIN,
            *words,
        )
    return {kind: work / kind / "checkpoints" / "step-00000003" / "export" for kind in KINDS}


def test_songs_are_as_long_as_asked_for_and_keep_their_plans(work):
    info = soundfile.info(work / "songs" / "audio" / "one.000.flac")
    assert (info.samplerate, info.channels, info.frames) == (4000, 1, 6000)
    assert [tuple(song.shape) for song in latents(work / "songs")] == 4 * [(160, 40)] + 4 * [(110, 40)]
    plans = [load_file(path)["contour"] for path in sorted((work / "songs" / "plans").iterdir())]
    assert [len(plan) for plan in plans] == 4 * [160] + 4 * [110]
    assert not torch.equal(plans[0], plans[1])


def test_it_trains_on_its_own_pairs(work, trained):
    for kind in KINDS:
        first, *_, last = rows(work / kind)
        assert first["margin"] == 0.0
        assert last["margin"] != 0.0
    parameters = {
        kind: json.loads((work / kind / "manifest.json").read_text())["trained_parameters"] for kind in KINDS
    }
    assert 0 < parameters["lora"] < parameters["full"]


def test_two_processes_train_as_one(work, trained):
    commands = [
        [f"out={work / 'two' / kind}", f"data.pairs={work / 'pairs'}", "train.per_device=1", *TRAIN, *words]
        for kind, words in KINDS.items()
    ]
    (work / "commands.json").write_text(json.dumps(commands))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += [
        "--config_file",
        str(CONFIGS / "cpu_2.yaml"),
        str(ROOT / "tests" / "support" / "train_many.py"),
    ]
    done = subprocess.run(
        [*launch, str(work / "commands.json")],
        cwd=ROOT,
        env=environment("two"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for kind in KINDS:
        assert json.loads((work / "two" / kind / "manifest.json").read_text())["world"] == 2
        same_trajectory(rows(work / kind), rows(work / "two" / kind))


@pytest.mark.parametrize(("kind", "argument"), [("lora", "adapter"), ("full", "network")])
def test_what_was_trained_is_sampled_from(work, trained, kind, argument):
    sample(
        work / f"songs-{kind}",
        work / "prompts.jsonl",
        f"model.args.{argument}={trained[kind]}",
        "per_prompt=4",
    )
    before, after = latents(work / "songs"), latents(work / f"songs-{kind}")
    assert len(before) == len(after) == 8
    for one, two in zip(before, after, strict=True):
        assert 1e-6 < (one - two).abs().max() < 1.0


def test_recordings_are_prepared_and_trained_on(work):
    time = np.arange(5000) / 4000
    lines = []
    for name, hertz in (("low", 110), ("high", 440)):
        wave = 0.3 * np.sin(2 * np.pi * hertz * time)[None].astype(np.float32)
        audio.write(work / f"{name}.wav", Clip(samples=wave, sample_rate=4000))
        lines.append({"id": name, "audio": f"{name}.wav", "text": name, "lyrics": "la la", "split": "train"})
    (work / "songs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    verb(
        "prepare",
        MODEL,
        f"songs={work / 'songs.jsonl'}",
        f"out={work / 'data'}",
        "captions=1",
        "style_window_s=0.6",
    )
    words = ("objective.name=flow_matching", "train.steps=2", "train.global_batch=2", "train.per_device=2")
    crop = ("data.crop.min_frames=60", "data.crop.max_frames=90")
    verb(
        "train",
        MODEL,
        f"data.songs={work / 'data'}",
        f"out={work / 'sft'}",
        "train.trackers=[]",
        *words,
        *crop,
    )
    assert all(np.isfinite(row["loss"]) for row in rows(work / "sft"))


def test_a_long_song_is_sampled_jointly(work):
    (work / "long.jsonl").write_text(json.dumps({"id": "long", "text": "rock", "duration_s": 5.0}))
    sample(work / "long", work / "long.jsonl", "longform.method=joint", "longform.overlap_s=0.5")
    assert soundfile.info(work / "long" / "audio" / "long.000.flac").frames == 20000
    assert latents(work / "long")[0].isfinite().all()


def test_what_it_cannot_do_is_refused_in_one_line(work):
    assert "longform.method=joint" in sample(work / "refused", work / "long.jsonl", code=2)
    song = work / "songs" / "latents" / "one.000.safetensors"
    edit = {"id": "edit", "text": "rock", "edit": {"song": str(song), "spans": [[0.2, 0.6]]}}
    (work / "edit.jsonl").write_text(json.dumps(edit))
    assert "does not in-paint" in sample(work / "refused-edit", work / "edit.jsonl", code=2)
    (work / "cover.jsonl").write_text(json.dumps(edit | {"edit": {"song": str(song), "cover": True}}))
    assert "this model cannot cover a recording" in sample(work / "no-cover", work / "cover.jsonl", code=2)
    pairs = (f"out={work / 'no'}", f"data.pairs={work / 'pairs'}", "train.per_device=4", *TRAIN)
    assert "this model cannot in-paint" in verb("train", *pairs, "train.inpaint={}", code=2)
    error = verb("train", *pairs, "train.dropout.tag=0.1", code=2)
    assert "no part 'tag'. Did you mean 'tags'?" in error
    assert "no layer 'to_ou.0'" in verb("train", *pairs, "train.lora.targets=[to_ou.0]", code=2)
    assert "unknown key 'model.args.netwrk'. Did you mean 'network'?" in verb(
        "train", *pairs, "model.args.netwrk=x", code=2
    )


def test_a_variation_needs_no_in_painting(work):
    song = work / "songs" / "latents" / "two.000.safetensors"
    (work / "vary.jsonl").write_text(
        json.dumps({"id": "vary", "text": "rock", "edit": {"song": str(song), "strength": 0.5}})
    )
    sample(work / "vary", work / "vary.jsonl")
    assert latents(work / "vary")[0].shape == load_file(song)["latents"].shape


def test_a_file_and_a_preview_of_its_sound_grow_in_chunks(tmp_path):
    """Mono sound of more than a minute, in the memory of a chunk."""
    model = MODELS["stranger"]().load()
    latents = torch.randn(6100, 40, generator=torch.Generator().manual_seed(0))
    write_song(SongAudio(model, latents), tmp_path / "song.flac")
    preview = Preview(tmp_path / "preview.flac")
    for finished in (2500, 6100):
        preview.grow(SongAudio(model, latents), finished)
    preview.file.close()
    song, grown = (audio.read(tmp_path / f"{name}.flac") for name in ("song", "preview"))
    assert song.samples.shape == grown.samples.shape == (1, 6100 * 40)
    expected = model.decode(latents).samples
    for clip in (song, grown):
        factor = float(np.vdot(clip.samples, expected) / np.vdot(expected, expected))
        assert np.abs(clip.samples - np.clip(factor * expected, -1, 1)).max() < 1e-3
