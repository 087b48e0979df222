"""Adapters that are added inside a matrix product: values and gradients of peft's layers, and peft for the rest."""

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import inject_adapter_in_model
from torch import nn

from diffdpo.training.lora import fuse_lora, is_plain, lora_forward
from diffdpo.training.row_scale import scale_rows


def adapted(dtype=torch.float64, **fields):
    """Two layers with adapters whose second factor is not zero."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))
    config = PeftLora(r=2, lora_alpha=3.0, target_modules=["0", "2"], **fields)
    network = inject_adapter_in_model(config, network).to(dtype)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return network.train()


def outcome(network, x):
    """Output, and gradients by name, that of the input too."""
    x = x.clone().requires_grad_()
    y = network(x)
    network.zero_grad()
    y.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return y.detach(), {"x": x.grad, **gradients}


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (2, 1, 3, 6)])
def test_values_and_gradients_are_those_of_peft(shape):
    network = adapted()
    x = torch.randn(shape, dtype=torch.float64)
    values, gradients = outcome(network, x)
    fuse_lora(network)
    assert all(layer.forward.__func__ is lora_forward for layer in (network[0], network[2]))
    assert is_plain(network[0], x)
    fused_values, fused_gradients = outcome(network, x)
    assert torch.allclose(values, fused_values, rtol=1e-12)
    assert gradients.keys() == fused_gradients.keys()
    assert len(gradients) == 5
    assert all(torch.allclose(gradients[name], fused_gradients[name], rtol=1e-11) for name in gradients)


def test_switched_off_it_is_the_base_and_at_its_start_too():
    network = adapted()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    fuse_lora(network)
    for layer in (network[0], network[2]):
        nn.init.zeros_(layer.lora_B["default"].weight)
    start = network(x)
    for layer in (network[0], network[2]):
        layer.enable_adapters(False)
    assert torch.equal(network(x), start)


def test_a_copy_computes_with_its_own_weights():
    network = adapted()
    fuse_lora(network)
    copy = deepcopy(network)
    x = torch.randn(2, 6, dtype=torch.float64)
    before = network(x)
    for parameter in copy.parameters():
        nn.init.constant_(parameter, 0.3)
    assert torch.equal(network(x), before)
    assert not torch.allclose(copy(x), before)


@pytest.mark.parametrize(
    "fields", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}, {"modules": "conv"}]
)
def test_other_adapters_stay_with_peft(fields):
    network = adapted(**{key: value for key, value in fields.items() if key != "modules"})
    if "modules" in fields:
        network = nn.Sequential(nn.Conv1d(6, 6, 1))
        network = inject_adapter_in_model(PeftLora(r=2, target_modules=["0"]), network).double()
        nn.init.normal_(network[0].lora_B["default"].weight)
    x = torch.randn(4, 6, dtype=torch.float64) if "modules" not in fields else torch.randn(2, 6, 4).double()
    torch.manual_seed(1)
    expected = network(x)
    fuse_lora(network)
    torch.manual_seed(1)
    assert torch.equal(network(x), expected)


def test_rows_of_several_strengths_have_theirs():
    """Values and gradients of a slider's rows, each a row alone times its strength."""
    network = adapted()
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    strengths = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    layer = network[0]
    base = layer.base_layer(x)
    change = (layer(x) - base).detach()
    fuse_lora(network)
    scale_rows(network, strengths)
    own = layer(x)
    assert torch.allclose(own, base + strengths[:, None, None] * change, rtol=1e-12)
    own.sum().backward()
    columns = layer.lora_A["default"](x) * layer.scaling["default"]
    expected = (strengths[:, None, None] * columns).sum((0, 1)).expand(5, -1)
    assert torch.allclose(layer.lora_B["default"].weight.grad, expected, rtol=1e-11)


def test_an_adapter_in_another_precision_than_its_layer_stays_with_peft():
    network = adapted(torch.float32)
    network[0].base_layer.to(torch.bfloat16)
    x = torch.randn(4, 6, dtype=torch.bfloat16)
    expected = network[0](x)
    fuse_lora(network)
    assert not is_plain(network[0], x)
    assert torch.equal(network[0](x), expected)


def test_under_autocast_it_rounds_as_a_product_does():
    network = adapted(torch.float32)
    x = torch.randn(64, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = network(x)
        fuse_lora(network)
        assert is_plain(network[0], x)
        fused = network(x)
    assert fused.dtype == torch.bfloat16
    assert torch.allclose(fused.float(), expected.float(), atol=0.15)
