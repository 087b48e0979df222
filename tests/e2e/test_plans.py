"""A planner's codes from sampling to training, on the renderer of tests/support/code_renderer.py."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.code_renderer import CODE_FRAMES, HOP, CodeNetwork, CodeRenderer
from support.launch import rows, verb

import diffdpo
from diffdpo.data import tables
from diffdpo.data.datasets.examples import DataConfig, build_examples
from diffdpo.data.datasets.generated import Source
from diffdpo.data.datasets.stream import batches
from diffdpo.data.pairs import PAIRS
from diffdpo.data.plans import plan_digest, read_plan, write_plan
from diffdpo.data.samples import SAMPLES
from diffdpo.models import MODELS
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.objectives import OBJECTIVES
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import plan_candidate, prompt_request
from diffdpo.sampling.sampler import sample_batch
from diffdpo.training.config import TrainConfig
from diffdpo.training.references import FrozenCopy
from diffdpo.training.step import outputs, sample_noise
from diffdpo.types import Plan, Prompt

pytestmark = pytest.mark.slow

MODEL, SEED, BETA = "model.name=code_renderer", 5, 20.0
MINE = (
    "axes=[production.balance]",
    "rule.args.pairs_per_prompt=2",
    "rule.args.min_margin=0.1",
    "gates=false",
)
LINES = [
    {"id": "one", "text": "slow rock", "negative_text": "noise", "duration_s": 1.2},
    {"id": "two", "text": "metal", "duration_s": 1.6},
]


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS.entries, "code_renderer", CodeRenderer)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("plans")
    (work / "prompts.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    sample(work, "songs")
    mine(work, "songs")
    return work


def sample(work, out, *words):
    places = (f"prompts={work / 'prompts.jsonl'}", f"out={work / out}", "per_prompt=4", f"seed={SEED}")
    verb("sample", MODEL, *places, "sampling.steps=2", "sampling.guidance_scale=3.0", *words)


def mine(work, *songs, out="pairs"):
    folders = ",".join(str(work / name) for name in songs)
    verb("score", f"samples=[{folders}]", f"out={work / 'scores'}", "scorers=[production]")
    verb("mine", f"samples=[{folders}]", f"scores={work / 'scores'}", f"out={work / out}", *MINE)


def train(work, out, *words, pairs="pairs", code=0):
    return verb(
        "train", MODEL, f"data.pairs={work / pairs}", f"out={work / out}", "objective.name=dpo",
        f"objective.args.beta={BETA}", "train.steps=1", "train.global_batch=4", "train.per_device=4",
        "train.lora=null", "train.trackers=[]", f"seed={SEED}", *words, code=code,
    )  # fmt: skip


def codes(work, sample_id, songs="songs"):
    return read_plan(work / songs / "plans" / f"{sample_id}.safetensors")


def closed_form(network, x, t, song_codes, text):
    """The velocity of one song, in numpy."""
    mix, table = (parameter.detach().double().numpy() for parameter in network.parameters())
    pull = MODELS["code_renderer"]().load().embed(Prompt(id="a", text=text))["pull"].double().numpy()
    frame_codes = 1 + np.repeat(song_codes.numpy(), CODE_FRAMES)[: len(x)]
    return x @ mix.T + table[frame_codes] + (1 + t) * pull


def pair_errors(work, batch, noise, network, *, swap=False):
    """Errors of winner and loser of each pair under their plans, or under each other's, from the files alone."""
    songs = {row.sample_id: row for row in tables.read_rows(work / "songs", SAMPLES)}
    texts = {line["id"]: line["text"] for line in LINES}
    errors = []
    for name, t, noise_frames in zip(batch.ids, noise.t.double().tolist(), noise.noise, strict=True):
        _, *members = name.split("|")
        plans = [codes(work, member).tensors["codes"] for member in members]
        for member, plan in zip(members, plans[::-1] if swap else plans, strict=True):
            song = load_file(work / "songs" / "latents" / f"{member}.safetensors")["latents"].double().numpy()
            target = noise_frames[: len(song)].double().numpy() - song
            v = closed_form(network, song + t * target, t, plan, texts[songs[member].prompt_id])
            errors.append(((v - target) ** 2).mean())
    return np.array(errors).reshape(-1, 2)


@pytest.fixture(scope="module")
def first_batch(work):
    """The pairs of the first step, as `train` reads them, and their noise."""
    model = CodeRenderer().load()
    store = EmbeddingStore(model)
    source = Source(
        embed=store.embed, embed_plan=store.embed_plan, channels=HOP, seed=SEED, report=print,
        frames_per_second=model.spec.frames_per_second,
    )  # fmt: skip
    examples = build_examples(DataConfig(pairs=str(work / "pairs")), "pair", "dpo", source)
    assert len(examples) == 4
    batch = next(batches(examples, iter([[0, 1, 2, 3]]), seed=SEED, workers=0))
    return batch, sample_noise(batch, TrainConfig(), SEED)


def test_a_candidate_is_stored_with_its_codes_and_the_state_of_their_planner(work):
    songs = sorted(tables.read_rows(work / "songs", SAMPLES), key=lambda song: song.sample_id)
    plans = [codes(work, song.sample_id) for song in songs]
    assert {plan.planner for plan in plans} == {"planner-first"}
    assert [len(plan.tensors["codes"]) for plan in plans] == 4 * [30] + 4 * [40]
    assert len({plan_digest(plan) for plan in plans}) == 8
    assert [song.plan for song in songs] == [plan_digest(plan) for plan in plans]


def test_codes_of_four_minutes_take_five_kilobytes(tmp_path):
    plan = Plan(planner=64 * "a", tensors={"codes": torch.arange(1200, dtype=torch.int32)})
    write_plan(tmp_path / "plan.safetensors", plan)
    assert (tmp_path / "plan.safetensors").stat().st_size < 5200


def test_train_gives_each_member_of_a_pair_its_own_plan(work, first_batch):
    train(work, "trained")
    (step,) = rows(work / "trained")
    expected = pair_errors(work, *first_batch, CodeNetwork())
    assert step["winner_error"] == pytest.approx(expected[:, 0].mean(), rel=1e-5)
    assert step["loser_error"] == pytest.approx(expected[:, 1].mean(), rel=1e-5)
    swapped = pair_errors(work, *first_batch, CodeNetwork(), swap=True)
    assert np.abs(swapped / expected - 1).min() > 1e-3


def test_the_loss_is_that_of_the_own_plans_and_another_one_under_swapped_plans(work, first_batch):
    (batch, noise), model, policy = first_batch, CodeRenderer().load(), CodeNetwork()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    objective = OBJECTIVES["dpo"](beta=BETA)

    reference = FrozenCopy.take(model.network, torch.device("cpu"))
    swapped_rows = replace(batch, rows=tuple(members[::-1] for members in batch.rows))
    losses = []
    for swap, data in ((False, batch), (True, swapped_rows)):
        with torch.no_grad():
            loss = objective(outputs(model, policy, reference, data, objective, noise)).loss.numpy()
        changes = pair_errors(work, batch, noise, policy, swap=swap) - pair_errors(
            work, batch, noise, model.network, swap=swap
        )
        logit = -BETA / 2 * (changes[:, 0] - changes[:, 1])
        assert loss == pytest.approx(np.log1p(np.exp(-logit)), rel=1e-5)
        losses.append(loss)
    assert np.abs(losses[0] - losses[1]).min() > 1e-3


def test_both_branches_of_guidance_follow_the_plan(work):
    """One step from the same noise under two plans: the songs differ by the codes alone, whatever the scale."""
    model = CodeRenderer().load()
    store, cfg = EmbeddingStore(model), SamplingConfig(steps=1, guidance_scale=3.0)
    for text in (None, "noise"):
        prompt = Prompt(id="a", text="rock", negative_text=text, duration_s=0.5)
        plans, songs = [], []
        for name in ("b", "c"):
            plan, embedding = plan_candidate(store, prompt, name, 50, SEED)
            request = prompt_request(prompt, "a", 50, store.embed, embedding)
            plans.append(model.network.table(embedding["codes"][:50].long()))
            songs.append(sample_batch(model, [request], cfg, seed=SEED)[0])
            assert plan.planner == "planner-first"
        assert torch.allclose(songs[0] - songs[1], plans[1] - plans[0], atol=1e-5)
        assert (plans[1] - plans[0]).abs().max() > 0.1


def test_python_and_the_command_line_sample_the_same_planned_songs(work, tmp_path):
    model = diffdpo.load_model("code_renderer")
    prompts = [Prompt(id=line["id"], text=line["text"], negative_text=line.get("negative_text"),
                      duration_s=line["duration_s"]) for line in LINES]  # fmt: skip
    songs = diffdpo.sample(model, prompts, per_prompt=4, seed=SEED, steps=2, guidance_scale=3.0)
    for song in songs:
        latents = load_file(work / "songs" / "latents" / f"{song.id}.safetensors")["latents"]
        assert torch.allclose(song.latents, latents, atol=1e-5)
        assert torch.equal(song.row.embedding["codes"], model.embed_plan(codes(work, song.id))["codes"])
    verb("song", "rock", tmp_path / "a.wav", "--seconds", 1, "--model", "code_renderer")
    verb("song", "rock", tmp_path / "b.wav", "--seconds", 1, "--model", "code_renderer", "--arg", "state=")
    one, two = (diffdpo.audio.read(tmp_path / name).samples for name in ("a.wav", "b.wav"))
    assert np.abs(one - two).max() > 1e-3


def test_another_state_of_the_planner_and_another_songs_plan_are_refused(work, tmp_path):
    error = train(work, "no", "model.args.state=second", code=2)
    assert "planner-first" in error
    assert "planner-second" in error
    for name in ("songs", "pairs"):
        shutil.copytree(work / name, tmp_path / name)
    pair = tables.read_rows(tmp_path / "pairs", PAIRS)[0]
    winner, loser = (
        tmp_path / "songs" / "plans" / f"{name}.safetensors" for name in (pair.winner, pair.loser)
    )
    text = winner.read_bytes()
    winner.write_bytes(loser.read_bytes())
    assert "not the plan that the song" in train(tmp_path, "no", code=2)
    winner.unlink()
    assert "missing" in train(tmp_path, "no", code=2)
    winner.write_bytes(text)
    train(tmp_path, "yes")


def test_songs_without_plans_train_as_before(work):
    sample(work, "plain", "model.args.state=")
    assert not (work / "plain" / "plans").exists()
    mine(work, "plain", out="plain-pairs")
    train(work, "plain-trained", "model.args.state=", pairs="plain-pairs")
    assert "none of its songs follows a plan" in verb(
        "export-pairs", work / "plain-pairs", "--for", "trl", "--out", work / "no.jsonl", code=2
    )
