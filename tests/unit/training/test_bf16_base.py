"""A frozen base in bf16: stored in half, computed as its fp32 values would be, in every way to run a step."""

import copy

import pytest
import torch
from support.launch import rows, verb

from diffdpo.errors import ConfigError
from diffdpo.models import MODELS
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.objectives.dpo import DPO
from diffdpo.training.bf16_base import Bf16Linear
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.estimate import estimate_memory
from diffdpo.training.live_bytes import LiveBytes, tensor_bytes
from diffdpo.training.lora import add_lora
from diffdpo.training.quantize import block_layers, check_base, quantize_base, quantize_layers
from diffdpo.training.strategy import build_accelerator
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow


def build():
    """A network whose blocks' weights are numbers of bf16, so that storing them as such changes none."""
    torch.manual_seed(0)
    network = DiffRhythmTransformer(
        dim=64,
        depth=2,
        num_attention_heads=2,
        max_frames=64,
        text_dim=16,
        style_dim=16,
        cond_dim=16,
        conv_layers=1,
    )
    for name in block_layers(network):
        network.get_submodule(name).weight.data.copy_(network.get_submodule(name).weight.bfloat16())
    return network


def step(network, peft, *, checkpointing, precision):
    """The output and the gradients of the adapter, away from its start."""
    add_lora(network, LoraConfig(rank=4, peft=peft), DiffRhythm.lora_targets, seed=0)
    if checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01, generator=generator)
    x, target = torch.randn(2, 1, 48, 64, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = network(
            x, torch.tensor([0.4]), text=torch.randint(0, 363, (1, 48), generator=generator),
            style=torch.randn(1, 16, generator=generator), audio=torch.zeros(1, 48, 64),
            start_time=torch.zeros(1),
        )  # fmt: skip
    (output.float() - target).square().mean().backward()
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    return output, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("peft", [{}, {"use_dora": True}])
def test_a_step_is_bit_for_bit_that_of_the_same_weights_in_fp32(peft, checkpointing):
    network = build()
    small = copy.deepcopy(network)
    quantize_layers(small, block_layers(small), "bf16")
    output, gradients = step(network, peft, checkpointing=checkpointing, precision="no")
    own_output, own_gradients = step(small, peft, checkpointing=checkpointing, precision="no")
    assert torch.equal(output, own_output)
    assert output.dtype == torch.float32
    assert gradients.keys() == own_gradients.keys()
    assert len(gradients) == 2 * 7 * (3 if peft else 2)
    assert all(torch.equal(gradients[name], own_gradients[name]) for name in gradients)


@pytest.mark.parametrize("has_fast_cpu", [False, True])
def test_under_autocast_a_product_is_that_of_bf16(has_fast_cpu):
    """Products of two bf16 are exact in fp32, so either way only sums and the last rounding differ: 2^-8 of the sum
    of the products' sizes bounds it."""
    layer = torch.nn.Linear(64, 32)
    small = Bf16Linear(layer)
    small.has_fast_cpu = has_fast_cpu
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = small(x)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    x64, weight = x.detach().bfloat16().double(), layer.weight.detach().bfloat16().double()
    exact = x64 @ weight.T + layer.bias.detach().double()
    size = x64.abs() @ weight.abs().T + layer.bias.detach().abs().double()
    assert ((output.double() - exact).abs() <= 2**-8 * size).all()
    assert ((x.grad.double() - weight.sum(0)).abs() <= 2**-7 * weight.abs().sum(0)).all()


def test_only_one_layer_is_in_fp32_at_a_time():
    """Four layers of 256 x 256 in bf16, 128 KiB each, on one row: beside them one copy of 256 KiB, and the rows."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(4)))
    for index in range(4):
        layers[index] = Bf16Linear(layers[index])
    assert tensor_bytes(list(layers.parameters())) == 4 * 2 * 256**2
    x = torch.randn(1, 256, requires_grad=True)
    count = LiveBytes()
    count.add(list(layers.parameters()), "weights")
    with count:
        layers(x).sum().backward()
    assert 4 * 256**2 <= count.peaks["activations"] <= 4 * 256**2 + 16 * 4 * 256


def test_the_start_of_an_adapter_is_that_above_fp32():
    network = build()
    small = copy.deepcopy(network)
    quantize_layers(small, block_layers(small), "bf16")
    for own in (network, small):
        add_lora(own, LoraConfig(rank=4), DiffRhythm.lora_targets, seed=0)
    values = dict(small.named_parameters())
    adapters = {name: p for name, p in network.named_parameters() if ".lora_" in name}
    assert all(torch.equal(p, values[name]) for name, p in adapters.items())


def test_weights_that_train_are_no_frozen_base(tmp_path):
    cfg = TrainConfig(base="bf16", trackers=[])
    with pytest.raises(
        ConfigError, match=r"train\.base=bf16: this is the frozen base below adapters; set train\."
    ):
        check_base(cfg, build_accelerator(cfg, str(tmp_path)))
    cfg = TrainConfig(base="bf16", lora=LoraConfig(rank=4), trackers=[])
    with pytest.raises(ConfigError, match=r"train\.base=bf16: Linear names no _repeated_blocks; use full"):
        quantize_base(torch.nn.Linear(2, 2), cfg, build_accelerator(cfg, str(tmp_path)))


def test_the_estimate_has_half_of_the_blocks(bundle):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    saved = sum(2 * model.network.get_submodule(name).weight.numel() for name in block_layers(model.network))
    embedding = model.embed(Prompt(id="p", text="a song", lyrics=""))
    full, small = (
        estimate_memory(model, embedding, DPO(), TrainConfig(base=base, lora=LoraConfig(rank=4)), 64)
        for base in ("full", "bf16")
    )
    assert full.weights - small.weights == saved > 0
    assert small.optimizer == full.optimizer


def train(out, bundle, pairs, *more):
    verb("train", f"out={out}", f"data.pairs={pairs}", f"model.args.bundle={bundle}", "train.lora.rank=4",
         "train.base=bf16", "train.steps=4", "train.global_batch=4", "train.per_device=4", "train.save_every=2",
         "train.learning_rate=1e-3", "train.trackers=[]", *more)  # fmt: skip
    return rows(out)


def test_a_run_begins_at_its_reference_learns_and_resumes(tmp_path, bundle, pairs):
    whole = train(tmp_path / "whole", bundle, pairs)
    assert whole[0]["margin"] == 0.0
    assert whole[-1]["margin"] > 0
    train(tmp_path / "run", bundle, pairs, "train.steps=2")
    assert train(tmp_path / "run", bundle, pairs) == whole
    state = tmp_path / "run/checkpoints/step-00000004/state"
    assert {path.name for path in state.glob("*.safetensors")} == {"adapter.safetensors"}
    assert (tmp_path / "run/checkpoints/step-00000004/export/pytorch_lora_weights.safetensors").is_file()
