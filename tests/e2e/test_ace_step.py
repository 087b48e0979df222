"""The whole loop on a small random ACE-Step 1.5 with a planner, the verbs called in one process."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.ace_step import CHANNELS, write_diffusers, write_original, write_planner
from support.launch import rows, same_trajectory, verb

from diffdpo.data.plans import read_plan

pytestmark = pytest.mark.slow

SAMPLING = (
    "sampling.solver=euler", "sampling.steps=3", "sampling.shift=3.0", "sampling.guidance=channel_apg",
    "sampling.guidance_scale=7.0",
)  # fmt: skip
TRAIN = (
    "objective.name=dpo", "objective.args.beta=200", "train.global_batch=2", "train.per_device=2",
    "train.learning_rate=1e-3", "train.timesteps.mean=-0.4", "train.dropout.prompt=0.15", "train.dropout.plan=0.2",
    "train.trackers=[]", "train.save_every=2",
)  # fmt: skip
KINDS = {"lora": "train.lora.rank=4", "full": "train.lora=null"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("ace-step")
    write_original(work)
    write_planner(work / "planner")
    for name, lines in {
        "mining": [
            {
                "id": "one",
                "text": "slow rock",
                "lyrics": "[verse]\nla la",
                "language": "en",
                "duration_s": 2.0,
                "bpm": 90,
            },
            {"id": "two", "text": "metal", "lyrics": "", "duration_s": 1.5, "key": "E minor", "metre": "4/4"},
        ],
        "evaluation": [
            {"id": "three", "text": "jazz", "duration_s": 1.5},
            {"id": "four", "text": "folk", "lyrics": "oh", "language": "fr", "duration_s": 1.5},
        ],
    }.items():
        (work / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sample(work, "songs", "mining", "per_prompt=3")
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


def model(work, *words):
    return (
        "model.name=ace_step", f"model.args.checkpoint={work / 'acestep-v15-base'}", "model.args.variant=base",
        f"model.args.planner={work / 'planner'}", *words,
    )  # fmt: skip


def sample(work, out, prompts, *words, code=0):
    places = (f"out={work / out}", f"prompts={work / prompts}.jsonl")
    return verb("sample", *places, *SAMPLING, *model(work), *words, code=code)


def train(work, out, *words, code=0):
    places = (f"out={work / out}", f"data.pairs={work / 'pairs'}", f"embedding_cache={work / 'cache'}")
    return verb("train", *places, *TRAIN, *model(work), *words, code=code)


def latents(folder):
    return [load_file(path)["latents"] for path in sorted(folder.glob("latents/*.safetensors"))]


@pytest.fixture(scope="module")
def trained(work):
    """Four steps: at once, and in two runs, the second of which resumes."""
    for kind, word in KINDS.items():
        train(work, kind, word, "train.steps=4")
    train(work, "resumed", KINDS["lora"], "train.steps=2")
    train(work, "resumed", KINDS["lora"], "train.steps=4")
    return {kind: work / kind / "checkpoints" / "step-00000004" / "export" for kind in KINDS}


def test_candidates_keep_their_codes(work):
    assert [tuple(song.shape) for song in latents(work / "songs")] == 3 * [(50, CHANNELS)] + 3 * [
        (38, CHANNELS)
    ]
    plans = [read_plan(path) for path in sorted((work / "songs" / "plans").iterdir())]
    assert [len(plan.tensors["codes"]) for plan in plans] == 3 * [10] + 3 * [8]
    assert not torch.equal(plans[0].tensors["codes"], plans[1].tensors["codes"])
    verb("export-pairs", work / "pairs", "--for", "trl", "--out", work / "planner.jsonl")
    line = json.loads((work / "planner.jsonl").read_text().splitlines()[0])
    winner = read_plan(work / "songs" / "plans" / f"{line['id'].split('|')[1]}.safetensors")
    assert line["planner"] == winner.planner
    assert line["chosen"] == "".join(f"<|audio_code_{code}|>" for code in winner.tensors["codes"].tolist())


def test_training_resumes_on_its_path(work, trained):
    for kind in KINDS:
        first, *_, last = rows(work / kind)
        assert first["margin"] == 0.0
        assert last["margin"] != 0.0
    same_trajectory(rows(work / "lora"), rows(work / "resumed"))
    assert list((work / "cache").glob("*.safetensors"))


def test_what_was_trained_is_sampled_and_compared(work, trained):
    sample(work, "before", "evaluation", "per_prompt=2")
    for kind, argument in (("lora", "adapter"), ("full", "network")):
        sample(work, f"after-{kind}", "evaluation", "per_prompt=2", f"model.args.{argument}={trained[kind]}")
        for one, two in zip(latents(work / "before"), latents(work / f"after-{kind}"), strict=True):
            assert two.isfinite().all()
            assert (one - two).abs().max() > 1e-6
    folders = f"[{work / 'before'},{work / 'after-lora'}]"
    verb("score", f"samples={folders}", f"out={work / 'compared'}", "scorers=[production]")
    verb(
        "evaluate", f"baseline={work / 'before'}", f"aligned={work / 'after-lora'}", f"scores={work / 'compared'}",
        f"out={work / 'report'}", f"pairs={work / 'pairs'}",
    )  # fmt: skip
    assert (work / "report" / "report.html").is_file()


def test_a_song_is_repainted_extended_and_covered(work):
    song, recording = (
        work / "songs" / f"{kind}/one.000.{end}"
        for kind, end in (("latents", "safetensors"), ("audio", "flac"))
    )
    lines = [
        {"id": "repaint", "text": "rock", "edit": {"song": str(song), "spans": [[0.4, 1.0]]}},
        {"id": "extend", "text": "rock", "edit": {"song": str(song), "extend_end_s": 1.0}},
        {"id": "cover", "text": "jazz", "edit": {"song": str(recording), "cover": True}},
    ]
    (work / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sample(work, "edits", "edits", "model.args.planner=")
    cover, extension, repaint = latents(work / "edits")
    before = load_file(song)["latents"]
    assert torch.allclose(repaint[:10], before[:10], atol=1e-6)
    assert torch.allclose(repaint[25:], before[25:], atol=1e-6)
    assert (repaint[10:25] - before[10:25]).abs().max() > 0.1
    assert len(extension) == 75
    assert torch.allclose(extension[:50], before, atol=1e-6)
    plan = read_plan(next((work / "edits" / "plans").iterdir()))
    assert (cover.shape, len(plan.tensors["codes"])) == ((50, CHANNELS), 10)
    assert plan.planner.startswith("recording-")


def test_the_turbo_trains_and_samples_at_its_eight_times(work):
    turbo = write_diffusers(work / "turbo", is_turbo=True, model_version="turbo")
    words = (f"model.args.checkpoint={turbo}", "model.args.variant=turbo")
    train(work, "turbo-lora", KINDS["lora"], "train.steps=3", "model.args.planner=", *words, code=2)
    sample(
        work, "turbo-songs", "mining", *words, "sampling.steps=8", "sampling.guidance_scale=1.0",
        "sampling.solver=ping_pong", "per_prompt=2",
    )  # fmt: skip
    scores, pairs = work / "turbo-scores", work / "turbo-pairs"
    verb("score", f"samples=[{work / 'turbo-songs'}]", f"out={scores}", "scorers=[production]")
    verb(
        "mine", f"samples=[{work / 'turbo-songs'}]", f"scores={scores}", f"out={pairs}", "max_pairs=2",
        "axes=[production.balance]",
    )  # fmt: skip
    train(work, "turbo-lora", KINDS["lora"], "train.steps=3", *words, f"data.pairs={pairs}")
    assert len(rows(work / "turbo-lora")) == 3


def test_what_does_not_fit_is_refused_in_one_line(work, tmp_path):
    wrong = train(
        work, "no", KINDS["lora"], "train.steps=3", f"model.args.planner={write_planner(tmp_path, 1)}", code=2
    )
    assert "audio codes of planner" in wrong
    variant = train(work, "no", KINDS["lora"], "train.steps=3", "model.args.variant=turbo", code=2)
    assert "weights of ACE-Step base, the configuration is for turbo" in variant
    long = {"id": "long", "text": "rock", "duration_s": 700}
    (work / "long.jsonl").write_text(json.dumps(long))
    assert "longer" in sample(work, "no-songs", "long", "model.args.planner=", code=2)
