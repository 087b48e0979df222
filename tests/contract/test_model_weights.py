"""Weights of every registered song model: adapters and whole networks, written and merged."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from support.model_contract import distance, draw, one_line_error

from diffdpo.errors import ConfigError
from diffdpo.models import MODELS
from diffdpo.models.adapter_config import AdapterConfig
from diffdpo.models.adapter_schedule import timed_adapters
from diffdpo.models.adapters import save_adapter
from diffdpo.models.checkpoints import save_network
from diffdpo.models.timed_adapters import apply_adapters
from diffdpo.training.config import LoraConfig
from diffdpo.training.setup import ADAPTABLE, add_lora

pytestmark = pytest.mark.slow


def test_a_configuration_names_the_weights_that_rounds_replace(subject):
    assert is_dataclass(MODELS[subject.name])
    assert {field.name for field in fields(MODELS[subject.name])} >= {"network", "adapter"}


def test_adapters_start_as_the_identity_and_take_the_gradient(fresh):
    model, inputs = fresh.model, fresh.inputs()
    before = fresh.velocity(inputs)
    layers = [name for name, module in model.network.named_modules() if isinstance(module, ADAPTABLE)]
    for target in model.lora_targets:
        assert any(name == target or name.endswith(f".{target}") for name in layers), target
    add_lora(model.network, LoraConfig(rank=2), model.lora_targets, seed=0)
    assert torch.equal(fresh.velocity(inputs), before)
    model.velocity(model.network, *inputs).square().mean().backward()
    moved = {n for n, p in model.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {n for n, _ in model.network.named_parameters() if ".lora_B." in n}


def test_lora_targets_that_match_nothing_are_refused(subject):
    target = subject.model.lora_targets[0]
    with one_line_error(f"no layer '{target}x'", ConfigError):
        add_lora(subject.model.network, LoraConfig(targets=[f"{target}x"]), (), seed=0)


def write_adapter(subject, folder, seed):
    """An adapter with random ups and downs; the model that has it."""
    model = subject.load()
    add_lora(model.network, LoraConfig(rank=3, alpha=5.0), model.lora_targets, seed)
    for number, (name, parameter) in enumerate(model.network.named_parameters()):
        if ".lora_B." in name:
            parameter.data = 0.1 * draw(*parameter.shape, seed=1000 * seed + number)
    save_adapter(model.network, model.network.state_dict(), folder)
    return model


def test_a_saved_adapter_merges_into_the_same_function(subject, tmp_path):
    inputs, adapted = subject.inputs(), write_adapter(subject, tmp_path, seed=1)
    merged = subject.load(adapter=str(tmp_path))
    assert not getattr(merged.network, "peft_config", None)
    after = replace(subject, model=merged).velocity(inputs)
    assert distance(after, subject.velocity(inputs)) > 1e-3
    assert distance(after, replace(subject, model=adapted).velocity(inputs)) <= 1e-5


def test_soups_of_adapters_commute(subject, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for number, folder in enumerate((one, two)):
        write_adapter(subject, folder, seed=1 + number)
    first, second, whole = (
        subject.load(adapter=text).network.state_dict()
        for text in (f"{one}@0.5,{two}@-0.25", f"{two}@-0.25,{one}@0.5", f"{one},{two}")
    )
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-6) for name in first)
    assert any(not torch.allclose(first[name], whole[name], rtol=0, atol=1e-3) for name in first)


def test_a_saved_network_comes_back_bit_for_bit(fresh, tmp_path):
    inputs, network = fresh.inputs(), fresh.model.network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    save_network(network, network.state_dict(), tmp_path)
    back = replace(fresh, model=fresh.load(network=str(tmp_path)))
    assert torch.equal(back.velocity(inputs), fresh.velocity(inputs))


def test_an_adapter_that_is_switched_off_leaves_the_base_bit_for_bit(fresh, subject, tmp_path):
    """As the sampler does outside an adapter's interval of t; inside it is what merging gives."""
    inputs, adapted = subject.inputs(), write_adapter(subject, tmp_path, seed=1)
    apply_adapters(fresh.model.network, "", [AdapterConfig(str(tmp_path), interval=[0.2, 0.8])])
    schedule = timed_adapters(fresh.model.network)
    assert torch.equal(fresh.velocity(inputs), subject.velocity(inputs))
    with schedule.act(frozenset(schedule.intervals)):
        assert distance(fresh.velocity(inputs), replace(subject, model=adapted).velocity(inputs)) <= 1e-5
    assert torch.equal(fresh.velocity(inputs), subject.velocity(inputs))
