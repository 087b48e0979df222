"""The speed of a training: by hand on small layers, by a clock of whole numbers, without touching the numbers."""

import json
from itertools import count

import pytest
import torch
from safetensors.torch import load_file
from support.rows import embedding
from support.training import batch
from torch import nn

from diffdpo.data.datasets.memory import PairsInMemory
from diffdpo.mining.values import Pair
from diffdpo.models import MODELS
from diffdpo.objectives import OBJECTIVES
from diffdpo.training.config import LoraConfig, ReferenceConfig, TrainConfig
from diffdpo.training.flops import FlopFormula, count_flops, matmul_rate, matrix_shapes
from diffdpo.training.session import optimize
from diffdpo.training.throughput import TIMINGS, AuxiliaryPasses, ThroughputMeter, step_note
from diffdpo.types import Row

pytestmark = pytest.mark.slow

FRAMES = (16, 24)


@pytest.fixture(scope="module")
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


def row(frames):
    return Row(embedding=embedding(torch.nn.functional.normalize(torch.ones(16), dim=0)), frames=frames)


def pairs(lengths=FRAMES):
    """Two pairs of songs; the members of each have two lengths."""
    generator = torch.Generator().manual_seed(0)
    songs = {f"{name}{i}": frames for i in range(2) for name, frames in zip("wl", lengths, strict=True)}
    return PairsInMemory(
        [
            Pair(prompt_id=f"p{i}", group=f"p{i}", winner=f"w{i}", loser=f"l{i}", rule="r", margins={})
            for i in (0, 1)
        ],
        {song: torch.randn(frames, 8, generator=generator) for song, frames in songs.items()},
        {song: row(frames) for song, frames in songs.items()},
        21.5,
    )


def test_a_linear_layer_is_counted_by_hand_forward_and_backward():
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    assert count_flops(lambda: layer(x)) == 2 * 3 * 5 * 7
    outputs = layer(x)
    assert count_flops(lambda: outputs.sum().backward()) == 2 * 3 * 5 * 7  # the input needs no gradient
    outputs = layer(x.requires_grad_())
    assert count_flops(lambda: outputs.sum().backward()) == 2 * 2 * 3 * 5 * 7


def test_a_grouped_convolution_is_counted_by_hand_forward_and_backward():
    layer, x = nn.Conv1d(8, 6, 5, padding=2, groups=2), torch.randn(3, 8, 20, requires_grad=True)
    forward = 2 * 3 * 6 * 20 * (8 // 2) * 5
    assert count_flops(lambda: layer(x)) == forward
    outputs = layer(x)
    assert count_flops(lambda: outputs.sum().backward()) == 2 * forward
    outputs = layer(x.detach())
    assert count_flops(lambda: outputs.sum().backward()) == forward  # by the weight alone


@pytest.mark.parametrize("has_gradient", [False, True])
def test_attention_is_two_products_forward_on_the_cpu_too(has_gradient):
    """Two songs, three heads, 8 frames of 4 channels: scores and the weighted sum are 8 x 8 x 4 multiplications."""
    q, k, v = (torch.randn(2, 3, 8, 4, requires_grad=has_gradient) for _ in range(3))
    assert count_flops(lambda: nn.functional.scaled_dot_product_attention(q, k, v)) == 2 * 2 * (
        2 * 3 * 8 * 8 * 4
    )


@pytest.fixture(scope="module")
def formula(model):
    """Fitted to what was counted at 64, 32 and 16 frames."""
    fitted = FlopFormula.of(model, None)
    fitted.song(row(64), 64)
    return fitted


def test_the_formula_gives_what_is_counted_at_another_length(formula):
    counted, fitted = formula._count(row(37), 37), formula.song(row(37), 37)
    assert fitted.forward == fitted.bare == pytest.approx(counted.forward, rel=1e-9)
    assert fitted.backward == pytest.approx(counted.backward, rel=1e-9)


def test_attention_of_the_network_is_what_grows_with_the_square(formula, model):
    one, two, three = (formula.song(row(64), frames).forward for frames in (64, 128, 192))
    config = model.network.config
    second_difference = three - 2 * two + one  # 2 c 64², c being attention's 4 dim a layer
    assert second_difference == pytest.approx(2 * 64**2 * 4 * config.dim * config.depth, rel=1e-6)


def test_the_rate_of_products_is_a_positive_number():
    shapes = matrix_shapes(
        nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 16), nn.Linear(2, 2))
    )
    assert set(shapes) == {(8, 16), (16, 8), (2, 2)}
    assert 0 < matmul_rate(shapes, 32, torch.float32, torch.device("cpu"), seconds=0.01) < float("inf")
    assert matmul_rate([], 32, torch.float32, torch.device("cpu")) == 0


def test_the_rate_is_products_over_seconds_of_the_clock():
    """A clock that ticks once a reading: a batch of one product takes one second."""
    ticks = count()
    rate = matmul_rate([(8, 16)], 4, torch.float32, torch.device("cpu"), clock=lambda: float(next(ticks)))
    assert rate == 2 * 4 * 8 * 16


def test_frames_and_examples_a_second_by_a_clock_of_whole_numbers():
    """Two batches of four pairs, each waited for one tick; the step took ten."""
    ticks, example_batch = count(), batch()
    meter = ThroughputMeter(clock=lambda: float(next(ticks)))
    stream = meter.watch(iter([example_batch, example_batch]))
    assert next(stream) is example_batch
    next(stream)
    metrics = meter.measure(10.0, 2, 30.0)
    frames = int(example_batch.frames.sum())
    assert metrics["frames_per_s"] == 2 * 2 * frames / 10
    assert metrics["examples_per_s"] == 2 * 2 * 4 / 10
    assert (metrics["data_wait_s"], metrics["remaining_s"], metrics["seconds"]) == (2.0, 30.0, 10.0)
    assert metrics["resident_gib"] > 0
    assert set(metrics) <= set(TIMINGS)
    assert next(stream, None) is None
    assert meter.measure(1.0)["frames_per_s"] == 0  # the next step begins at nothing
    assert step_note({"loss": 0.5, "frames_per_s": 1234.5, "matmul_share": 0.5}) == (
        "loss 0.5000, 1234 frames/s, 50% of matmul"
    )


def test_the_passes_of_a_step_are_those_that_the_objective_needs():
    def passes(name, **settings):
        counted = AuxiliaryPasses.of(OBJECTIVES[name](), TrainConfig(**settings))
        return counted.reference, counted.auxiliary, counted.has_adapter

    lora = LoraConfig(rank=2)
    assert passes("dpo") == (1, 0, True)
    assert passes("dpo", lora=lora) == (1, 0, False)
    assert passes("flow_matching") == (0, 0, True)
    assert passes("slider", lora=lora) == (1, 2, False)
    assert passes("nft", old=ReferenceConfig("ema"))[1] == 1  # an old policy of its own


def train(bundle, out, **settings):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    cfg = TrainConfig(
        steps=4,
        global_batch=2,
        per_device=1,
        learning_rate=1e-3,
        lora=LoraConfig(rank=2),
        trackers=[],
        save_every=4,
        **settings,
    )
    weights = optimize(model, pairs(), OBJECTIVES["dpo"](beta=10.0), cfg, out=out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (path,) = weights.glob("*.safetensors")
    return rows, load_file(path)  # safetensors writes entries of metadata in any order


@pytest.fixture(scope="module")
def plain(bundle, tmp_path_factory):
    return train(bundle, tmp_path_factory.mktemp("plain"), matmul_share=False)


def numbers(rows):
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def test_profile_and_share_move_no_number_of_the_training(bundle, tmp_path, plain):
    rows, weights = train(bundle, tmp_path, matmul_share=True, profile=True)
    assert numbers(rows) == numbers(plain[0])
    assert weights.keys() == plain[1].keys()
    assert all(torch.equal(weights[name], plain[1][name]) for name in weights)
    assert all(0 < row["matmul_share"] < 10 for row in rows)
    assert all("matmul_share" not in row and "memory_gib" not in row for row in plain[0])
    for one in (*rows, *plain[0]):
        assert one["frames_per_s"] == pytest.approx(2 * sum(FRAMES) / one["seconds"])
        assert one["examples_per_s"] == pytest.approx(2 / one["seconds"])
        assert 0 <= one["data_wait_s"] < one["seconds"]
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert sum(group["seconds"] for group in profile["groups"]) == pytest.approx(profile["seconds"], rel=0.02)
    (profiled,) = [row for row in rows if "profiled" in row]
    assert profiled["seconds"] < 3 * profile["seconds"]  # evaluating takes many times the step
    kinds = {group["kind"]: group for group in profile["groups"]}
    assert {"matmul", "attention", "convolution", "optimizer", "movement", "elementwise", "data wait"} <= set(
        kinds
    )
    text = (tmp_path / "profile.txt").read_text()
    assert all(kind in text for kind in kinds)
    assert "traceEvents" in json.loads((tmp_path / "profile_trace.json").read_text())
