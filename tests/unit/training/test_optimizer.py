"""AdamW with moments in 8 bits: near AdamW by the error of its blocks, and resumed bit for bit."""

import pytest
import torch
from support.launch import hide_package, rows, verb

from diffdpo.training.config import TrainConfig
from diffdpo.training.live_bytes import LiveBytes, tensor_bytes
from diffdpo.training.optimizer import (
    BLOCK,
    UPDATE_COPIES,
    build_optimizer,
    moment_bytes,
    set_rate,
)

pytestmark = pytest.mark.slow

CPU, RATE, BETAS, EPS = torch.device("cpu"), 1e-2, (0.9, 0.999), 1e-8
STEPS = 12
HALF_GAP = {"m": 0.9 / 64 / 2, "v": 0.9 / 128 / 2}
"""Half of the widest gap between neighbours of the 256 values, as a share of a block's largest: the decade from 0.1
to 1 has 64 values for a signed moment and 128 for one that is never negative (Dettmers et al. 2022)."""


def optimizer(kind, weight, rate=RATE):
    network = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    network.weight.data = weight.clone()
    cfg = TrainConfig(optimizer=kind, learning_rate=rate, betas=list(BETAS), weight_decay=0.01)
    return build_optimizer(network, cfg, CPU), network.weight


def gradients(shape):
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        yield signs * (0.5 + 0.5 * torch.rand(shape, generator=generator))


def largest_in_block(values):
    return values.abs().view(-1, BLOCK).amax(1, keepdim=True).expand(-1, BLOCK).reshape(values.shape)


def bound(shape):
    """How far the parameters may be from AdamW's: the errors of both moments, carried from step to step.

    A moment that was stored is off by at most half a gap times the largest of its block; the next one inherits beta
    times that. An update grows with m and falls with v, so it is furthest off where both are.
    """
    m, v, m_error, v_error, total = (torch.zeros(shape, dtype=torch.float64) for _ in range(5))
    for step, gradient in enumerate(gradients(shape), 1):
        g = gradient.double()
        m_error = BETAS[0] * (m_error + HALF_GAP["m"] * largest_in_block(m.abs() + m_error))
        v_error = BETAS[1] * (v_error + HALF_GAP["v"] * largest_in_block(v + v_error))
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g.square()

        def update(m, v, step=step):
            return m / (1 - BETAS[0] ** step) / ((v / (1 - BETAS[1] ** step)).clamp(min=0).sqrt() + EPS)

        corners = [update(m + a * m_error, v + b * v_error) for a in (-1, 1) for b in (-1, 1)]
        total += RATE * torch.stack([(corner - update(m, v)).abs() for corner in corners]).amax(0)
    return total


def test_parameters_stay_near_adamw_by_the_error_of_the_blocks():
    pytest.importorskip("torchao")
    shape = (32, 256)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (plain, exact), (small, near) = (optimizer(kind, start) for kind in ("adamw", "adamw_8bit"))
    for gradient in gradients(shape):
        exact.grad, near.grad = gradient.clone(), gradient.clone()
        plain.step()
        small.step()
    error, allowed = (near - exact).abs().double(), bound(shape)
    assert (error <= allowed + 1e-6).all()
    assert error.max() > 1e-4  # the moments are in 8 bits
    assert allowed.mean() < 0.5 * (exact - start).abs().mean()  # the bound says something
    assert error.mean() < 0.05 * (exact - start).abs().mean()


def test_the_first_step_is_adamws(tmp_path):
    """Moments are rounded when they are stored, behind the update."""
    pytest.importorskip("torchao")
    start = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    weights = []
    for kind in ("adamw", "adamw_8bit"):
        own, weight = optimizer(kind, start)
        weight.grad = start.sin()
        own.step()
        weights.append(weight.detach())
    assert torch.allclose(*weights, atol=1e-6)


def test_a_rate_is_set_whether_it_is_a_number_or_a_tensor():
    pytest.importorskip("torchao")
    start = torch.ones(32, 256)
    for kind in ("adamw", "adamw_8bit"):
        own, weight = optimizer(kind, start)
        set_rate(own, 0.0)
        weight.grad = torch.ones_like(weight)
        own.step()
        assert torch.equal(weight, start)
        assert float(own.param_groups[0]["lr"]) == 0


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_bytes_are_those_of_its_state_and_of_its_update(kind):
    pytest.importorskip("torchao")
    network = torch.nn.Sequential(
        torch.nn.Linear(512, 512), torch.nn.Linear(512, 10), torch.nn.Linear(7, 600)
    )
    cfg = TrainConfig(optimizer=kind)
    own = build_optimizer(network, cfg, CPU)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    own.step()
    moments = [value for state in own.state.values() for name, value in state.items() if name != "step"]
    assert tensor_bytes(moments) == moment_bytes(network.parameters(), cfg)
    if kind == "adamw_8bit":
        assert tensor_bytes(moments) < 0.3 * 2 * tensor_bytes(list(network.parameters()))
    count = LiveBytes()
    count.add([list(network.parameters()), [p.grad for p in network.parameters()], moments])
    before = count.total
    with count:
        own.step()
    assert (count.peak - before) / (4 * 512 * 512) == pytest.approx(UPDATE_COPIES[kind], rel=0.02)


def train(out, bundle, pairs, *more, code=0):
    """Adapters of rank 128 on 32 channels: 4,096 numbers each, so that their moments are in 8 bits."""
    return verb("train", f"out={out}", f"data.pairs={pairs}", f"model.args.bundle={bundle}", "train.lora.rank=128",
                "train.steps=4", "train.global_batch=4", "train.per_device=4", "train.save_every=2",
                "train.learning_rate=1e-3", "train.warmup_steps=2", "train.trackers=[]", *more,
                code=code)  # fmt: skip


def test_a_run_learns_and_resumes_bit_for_bit(tmp_path, bundle, pairs):
    pytest.importorskip("torchao")
    own, eight = tmp_path / "own", "train.optimizer=adamw_8bit"
    train(tmp_path / "whole", bundle, pairs, eight)
    train(own, bundle, pairs, eight, "train.steps=2")
    train(own, bundle, pairs, eight)
    assert rows(own) == rows(tmp_path / "whole")
    assert rows(own)[-1]["margin"] > rows(own)[0]["margin"] == 0
    states = [
        torch.load(folder / "checkpoints/step-00000004/state/optimizer.bin", weights_only=True)["state"]
        for folder in (own, tmp_path / "whole")
    ]
    codes = [
        [getattr(value, "codes", value) for state in states_of.values() for value in state.values()]
        for states_of in states
    ]
    assert any(value.dtype == torch.uint8 for value in codes[0])
    assert all(torch.equal(a, b) for a, b in zip(*codes, strict=True))
    error = train(own, bundle, pairs, "train.steps=6", code=2)
    assert "optimizer" in error


def test_without_the_package_the_answer_is_one_line(tmp_path, bundle, pairs, monkeypatch):
    hide_package(monkeypatch, "torchao")
    error = train(tmp_path / "run", bundle, pairs, "train.optimizer=adamw_8bit", code=2)
    assert "train.optimizer=adamw_8bit needs torchao, which is not installed; pip install torchao" in error
