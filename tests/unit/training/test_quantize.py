"""A base in 8 bits below adapters in full precision."""

import copy

import pytest
import torch
from support.launch import hide_package, rows, verb

from diffdpo.errors import ConfigError
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.live_bytes import tensor_bytes
from diffdpo.training.lora import add_lora
from diffdpo.training.quantize import check_base, quantize_base, require_package
from diffdpo.training.setup import trainable
from diffdpo.training.strategy import build_accelerator

pytestmark = pytest.mark.slow

CFG = TrainConfig(lora=LoraConfig(rank=8), base="int8", trackers=[])


def accelerator(tmp_path):
    return build_accelerator(CFG, str(tmp_path))


def test_what_cannot_be_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.base=int8: weights in few bits cannot be trained"):
        check_base(TrainConfig(base="int8", trackers=[]), accelerator(tmp_path))
    with pytest.raises(ConfigError, match=r"train\.base=nf4: bitsandbytes needs a CUDA device"):
        check_base(TrainConfig(lora=LoraConfig(), base="nf4", trackers=[]), accelerator(tmp_path))
    with pytest.raises(ConfigError, match="K=V needs no-such-package, which is not installed; pip install"):
        require_package("no-such-package", "K=V")


def step(network):
    """Gradients of the adapter's tensors, away from its start."""
    add_lora(network, CFG.lora, DiffRhythm.lora_targets, seed=0)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01, generator=generator)
    x, target = torch.randn(2, 1, 48, 64, generator=generator)
    output = network(
        x, torch.tensor([0.4]), text=torch.randint(0, 363, (1, 48), generator=generator),
        style=torch.randn(1, 64, generator=generator), audio=torch.zeros(1, 48, 64), start_time=torch.zeros(1),
    )  # fmt: skip
    (output - target).square().mean().backward()
    return {name: p.grad.flatten() for name, p in network.named_parameters() if p.grad is not None}


def wide():
    torch.manual_seed(0)
    return DiffRhythmTransformer(
        dim=2048, depth=2, num_attention_heads=32, max_frames=64, text_dim=64, style_dim=64, cond_dim=64,
        conv_layers=1,
    )  # fmt: skip


def test_gradients_at_width_2048_are_those_of_the_full_base(tmp_path):
    """Cosine of at least .999 and a norm within 2 %, for every tensor of the adapter."""
    pytest.importorskip("torchao")
    network = wide()
    expected = step(copy.deepcopy(network))
    blocks = network.transformer_blocks
    before = tensor_bytes(list(blocks.parameters()))
    quantize_base(network, CFG, accelerator(tmp_path))
    assert tensor_bytes(list(blocks.parameters())) < 0.27 * before
    actual = step(network)
    assert {p.dtype for p in trainable(network)} == {torch.float32}
    assert expected.keys() == actual.keys()
    assert len(expected) == 2 * 2 * 7
    for name, gradient in expected.items():
        assert torch.cosine_similarity(gradient, actual[name], dim=0) >= 0.999, name
        assert float(actual[name].norm() / gradient.norm()) == pytest.approx(1, abs=0.02), name


def train(out, bundle, pairs, *more):
    verb("train", f"out={out}", f"data.pairs={pairs}", f"model.args.bundle={bundle}", "train.lora.rank=4",
         "train.base=int8", "train.steps=4", "train.global_batch=4", "train.per_device=4", "train.save_every=2",
         "train.learning_rate=1e-3", "train.trackers=[]", *more)  # fmt: skip
    return rows(out)


def test_a_run_begins_at_its_reference_learns_and_resumes(tmp_path, bundle, pairs):
    pytest.importorskip("torchao")
    whole = train(tmp_path / "whole", bundle, pairs)
    assert whole[0]["margin"] == 0.0
    assert whole[-1]["margin"] > 0
    train(tmp_path / "run", bundle, pairs, "train.steps=2")
    assert train(tmp_path / "run", bundle, pairs) == whole
    state = tmp_path / "run/checkpoints/step-00000004/state"
    assert {path.name for path in state.glob("*.safetensors")} == {"adapter.safetensors"}
    assert (tmp_path / "run/checkpoints/step-00000004/export/pytorch_lora_weights.safetensors").is_file()


def test_without_the_package_the_answer_is_one_line(tmp_path, bundle, pairs, monkeypatch):
    hide_package(monkeypatch, "torchao")
    error = verb("train", f"out={tmp_path}/run", f"data.pairs={pairs}", f"model.args.bundle={bundle}",
                 "train.lora.rank=4", "train.base=int8", "train.trackers=[]", "train.steps=1", code=2)  # fmt: skip
    assert "train.base=int8 needs torchao, which is not installed; pip install torchao" in error
