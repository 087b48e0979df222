"""Weights in bf16: masters are AdamW's fp32 weights, stochastic rounding is right in the mean, both resume."""

import copy
import io

import pytest
import torch
from safetensors.torch import load_file
from support.launch import rows, verb

from diffdpo.errors import ConfigError
from diffdpo.models import MODELS
from diffdpo.objectives.dpo import DPO
from diffdpo.training.bf16_optimizer import MASTER, Bf16AdamW, round_stochastic
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.estimate import estimate_memory
from diffdpo.training.live_bytes import LiveBytes, tensor_bytes
from diffdpo.training.optimizer import UPDATE_COPIES, build_optimizer, check_weight_precision, moment_bytes
from diffdpo.training.strategy import STRATEGIES, check_strategy
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
KINDS = ("bf16_master", "bf16_stochastic")


def optimizer(weight, has_master, rate=1e-2, seed=0):
    parameter = torch.nn.Parameter(weight.clone())
    group = {"params": [parameter], "weight_decay": 0.01}
    return Bf16AdamW([group], lr=rate, betas=(0.9, 0.999), has_master=has_master, seed=seed), parameter


def gradients(shape, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).bfloat16() for _ in range(steps)]


def advance(own, parameter, steps):
    for gradient in steps:
        parameter.grad = gradient.clone()
        own.step()


def test_masters_are_the_weights_of_adamw_in_fp32():
    start = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = torch.nn.Parameter(start.float())
    group = {"params": [exact], "weight_decay": 0.01}
    advance(torch.optim.AdamW([group], lr=1e-2, betas=(0.9, 0.999), fused=True), exact,
            [g.float() for g in gradients((64, 64), 5)])  # fmt: skip
    own, parameter = optimizer(start, has_master=True)
    advance(own, parameter, gradients((64, 64), 5))
    assert torch.equal(own.state[parameter][MASTER], exact)
    assert torch.equal(parameter, exact.bfloat16())


def test_updates_below_the_steps_of_bf16_are_kept_by_masters_and_taken_in_the_mean_by_chance():
    """The update of AdamW on equal gradients is the rate. Below 1 numbers of bf16 are 2^-8 apart; a rate of 2^-12
    is a sixteenth of that, which rounding to the nearest never takes. 160 updates are ten such steps."""
    start, rate, count = torch.ones(4096, dtype=torch.bfloat16), 2**-12, 160
    weights = {}
    for has_master in (True, False):
        own, parameter = optimizer(start, has_master, rate)
        own.param_groups[0]["weight_decay"] = 0.0
        advance(own, parameter, [torch.ones_like(start)] * count)
        weights[has_master] = parameter.detach().float()
    assert (start - rate).bfloat16().equal(start)
    end = 1 - rate * count
    assert torch.allclose(weights[True], torch.tensor(end), atol=2**-9)
    standard_error = 2**-8 * (count * (1 / 16) * (15 / 16) / len(start)) ** 0.5
    assert abs(float(weights[False].mean()) - end) < 4 * standard_error
    assert float(weights[False].std()) > 0


@pytest.mark.parametrize("value", [1.0 + 2**-9, -3.0 - 2**-10, 1e-30, 0.1, -6.5e4])
def test_the_mean_of_rounded_values_is_the_value(value):
    """Within four standard errors of a coin between the two neighbours; none of them is a third value."""
    count = 200_000
    values = torch.full((count,), value)
    rounded = round_stochastic(values, torch.Generator().manual_seed(0))
    neighbours = rounded.double().unique().tolist()
    exact = float(values[0].double())
    assert len(neighbours) == 2
    low, high = neighbours
    assert low < exact < high
    assert torch.tensor([low, high]).bfloat16().view(torch.int16).diff().abs().item() == 1
    share = (exact - low) / (high - low)
    error = (share * (1 - share) / count) ** 0.5 * (high - low)
    assert abs(float(rounded.double().mean()) - exact) < 4 * error
    assert float((rounded.double() == high).double().mean()) == pytest.approx(share, abs=4 * 0.5 / count**0.5)


def test_numbers_of_bf16_stay_what_they_are():
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 3e38, float("inf"), 2**-133]).bfloat16()
    assert torch.equal(round_stochastic(values.float(), torch.Generator().manual_seed(1)), values)


@pytest.mark.parametrize("has_master", [True, False])
def test_a_restored_optimiser_goes_on_bit_for_bit_and_replicas_round_alike(has_master):
    start = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    steps = gradients((32, 32), 6)
    whole, weight = optimizer(start, has_master)
    advance(whole, weight, steps)
    torch.manual_seed(123)  # no number of torch's own generator is used
    first, own = optimizer(start, has_master)
    advance(first, own, steps[:3])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second, restored = optimizer(own.detach(), has_master)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert {v.dtype for v in second.state[restored].values()} == {torch.float32}
    advance(second, restored, steps[3:])
    assert torch.equal(restored, weight)
    if not has_master:
        other, different = optimizer(start, has_master, seed=1)
        advance(other, different, steps)
        assert not torch.equal(different, weight)


def fit(kind):
    """The error of weights trained to those that made the data, 500 steps from 0.2 beside them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1024, 128, generator=generator)
    target = torch.randn(128, 16, generator=generator)
    weight = torch.nn.Parameter(target + 0.2 * torch.randn(128, 16, generator=generator))
    group = {"params": [weight], "weight_decay": 0.0}
    if kind != "fp32":
        weight.data = weight.data.bfloat16()
    if kind.startswith("bf16_"):
        own = Bf16AdamW([group], lr=1e-3, betas=(0.9, 0.999), has_master=kind == "bf16_master")
    else:
        own = torch.optim.AdamW([group], lr=1e-3)
    for step in range(500):
        own.param_groups[0]["lr"] = 1e-3 * (1 - step / 500)
        part = inputs[torch.randint(0, 1024, (64,), generator=generator)]
        weight.grad = (part.T @ (part @ (weight.detach().float() - target)) / 64).to(weight.dtype)
        own.step()
    return float((weight.detach().float() - target).square().mean())


def test_training_in_bf16_ends_where_fp32_does_and_plain_bf16_does_not():
    errors = {kind: fit(kind) for kind in ("fp32", "bf16", *KINDS)}
    assert errors["fp32"] < 0.5 * 0.04
    assert errors["bf16_master"] == pytest.approx(errors["fp32"], rel=0.01)
    assert errors["bf16_stochastic"] == pytest.approx(errors["fp32"], rel=0.1)
    assert errors["bf16"] > 2 * errors["fp32"]


@pytest.mark.parametrize("weights", KINDS)
def test_bytes_are_those_of_its_state_and_of_its_update(weights):
    network = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 10)).bfloat16()
    cfg = TrainConfig(weights=weights, precision="bf16")
    own = build_optimizer(network, cfg, CPU)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    own.step()
    state = [value for entries in own.state.values() for name, value in entries.items() if name != "step"]
    assert tensor_bytes(state) == moment_bytes(network.parameters(), cfg)
    count = LiveBytes()
    count.add([list(network.parameters()), [p.grad for p in network.parameters()], state])
    before = count.total
    with count:
        own.step()
    assert (count.peak - before) / (4 * 512 * 512) == pytest.approx(UPDATE_COPIES[weights], rel=0.02)


def test_the_estimate_halves_weights_gradients_and_reference(bundle):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    embedding = model.embed(Prompt(id="p", text="a song", lyrics=""))
    full, half = (
        estimate_memory(model, embedding, DPO(), TrainConfig(precision="bf16", weights=weights), 64)
        for weights in ("fp32", "bf16_master")
    )
    for name in ("weights", "gradients", "reference"):
        assert getattr(half, name) == getattr(full, name) / 2, name
    assert half.optimizer == 1.5 * full.optimizer


def test_what_cannot_be_is_one_line():
    settings = {"weights": "bf16_master", "precision": "bf16"}
    check_weight_precision(TrainConfig(**settings))
    with pytest.raises(ConfigError, match=r"adapters are trained in fp32; .* train\.base=bf16"):
        check_weight_precision(TrainConfig(**settings, lora=LoraConfig()))
    with pytest.raises(
        ConfigError, match=r"train\.weights=bf16_master: DeepSpeed keeps fp32 copies of its own"
    ):
        check_strategy(TrainConfig(**settings), STRATEGIES["zero2"], DPO())
    with pytest.raises(ConfigError, match=r"train\.weights=bf16_master: FSDP2 shards weights"):
        check_strategy(TrainConfig(**settings), STRATEGIES["fsdp2"], DPO())
    with pytest.raises(ConfigError, match=r"set train\.precision=bf16"):
        check_weight_precision(TrainConfig(weights="bf16_master"))
    with pytest.raises(ConfigError, match=r"train\.optimizer=adamw_8bit is for weights in fp32"):
        check_weight_precision(TrainConfig(**settings, optimizer="adamw_8bit"))


def test_fused_updates_are_those_of_the_formula_and_old_states_go_on_as_they_were():
    """AdamW (Loshchilov and Hutter 2019) in fp64; a state of an optimiser that was not fused keeps its own way."""
    start, steps = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), gradients((64, 64), 6)
    steps = [g.float() for g in steps]
    network = torch.nn.Linear(64, 64, bias=False)
    network.weight.data = start.clone()
    own = build_optimizer(
        network, TrainConfig(learning_rate=1e-2, betas=[0.9, 0.999], weight_decay=0.01), CPU
    )
    advance(own, network.weight, steps)
    w, m, v = start.double(), torch.zeros(64, 64).double(), torch.zeros(64, 64).double()
    for t, gradient in enumerate(steps, 1):
        m, v = 0.9 * m + 0.1 * gradient.double(), 0.999 * v + 0.001 * gradient.double() ** 2
        w = w - 1e-2 * 0.01 * w - 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    assert torch.allclose(network.weight.double(), w, rtol=1e-6, atol=1e-6)
    assert own.param_groups[0]["fused"]
    old_weight = torch.nn.Parameter(start.clone())
    old = torch.optim.AdamW([{"params": [old_weight], "weight_decay": 0.01}], lr=1e-2, betas=(0.9, 0.999))
    advance(old, old_weight, steps[:3])
    network.weight.data = old_weight.detach().clone()
    own.load_state_dict(copy.deepcopy(old.state_dict()))
    advance(own, network.weight, steps[3:])
    advance(old, old_weight, steps[3:])
    assert torch.equal(network.weight, old_weight)


@pytest.mark.parametrize("weights", KINDS)
def test_a_run_begins_at_its_reference_resumes_and_exports_bf16(tmp_path, bundle, pairs, weights):
    def train(out, *more):
        verb("train", f"out={out}", f"data.pairs={pairs}", f"model.args.bundle={bundle}", "train.precision=bf16",
             f"train.weights={weights}", "train.steps=4", "train.global_batch=4", "train.per_device=4",
             "train.save_every=2", "train.learning_rate=1e-3", "train.ema=0.9", "train.trackers=[]",
             *more)  # fmt: skip
        return rows(out)

    whole = train(tmp_path / "whole")
    assert whole[0]["margin"] == 0.0
    assert whole[-1]["margin"] > 0
    names = ["whole"]
    if weights == "bf16_stochastic":
        train(tmp_path / "run", "train.steps=2")
        assert train(tmp_path / "run") == whole
        names.append("run")
    files = [tmp_path / name / "checkpoints/step-00000004/export" for name in names]
    states = [load_file(next(iter(folder.glob("*.safetensors")))) for folder in files]
    assert {v.dtype for v in states[0].values()} == {torch.bfloat16}
    assert all(torch.equal(value, states[-1][name]) for name, value in states[0].items())
