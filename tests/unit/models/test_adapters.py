"""Adapters merged into a network with weights: the base plus the weighted sum of what each of them learned."""

import pytest
import torch
from support.bundle import write_bundle

from diffdpo.errors import CheckpointError
from diffdpo.models import MODELS
from diffdpo.models.adapters import ADAPTER, parse_adapters, read_adapter, save_adapter
from diffdpo.models.checkpoints import save_network
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.checkpoints import load_network
from diffdpo.training.config import LoraConfig
from diffdpo.training.setup import add_lora


def write_adapter(bundle, folder, seed, *, rank=3, alpha=5.0):
    """A LoRA with random ups and downs."""
    network = load_network(bundle / "network")
    add_lora(network, LoraConfig(rank=rank, alpha=alpha), DiffRhythm.lora_targets, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    save_adapter(network, network.state_dict(), folder)
    return folder


@pytest.fixture(scope="module")
def adapters(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return write_adapter(bundle, folder / "a", 1), write_adapter(bundle, folder / "b", 2, rank=2, alpha=2.0)


def changes(folder, scale):
    """alpha / rank B A for every layer an adapter is about, in float64."""
    state, _ = read_adapter(folder)
    layers = {name.split(".lora_A")[0] for name in state if ".lora_A" in name}
    ups, downs = ({layer: state[f"{layer}.lora_{side}.weight"].double() for layer in layers} for side in "BA")
    return {f"{layer}.weight": scale * ups[layer] @ downs[layer] for layer in layers}


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, -0.25), (0.0, 2.0)])
def test_a_soup_is_the_base_and_the_weighted_sum_of_its_adapters(bundle, adapters, weights):
    one, two = adapters
    text = f"{one}@{weights[0]},{two}@{weights[1]}"
    base = load_network(bundle / "network", dtype=torch.float64).state_dict()
    soup = load_network(bundle / "network", text, dtype=torch.float64).state_dict()
    first, second = changes(one, 5 / 3), changes(two, 1.0)
    assert soup.keys() == base.keys()
    assert first
    assert first.keys() == second.keys()
    for name, weight in base.items():
        expected = weight
        if name in first:
            expected = weight + weights[0] * first[name] + weights[1] * second[name]
            assert not torch.allclose(expected, weight)
        assert torch.allclose(soup[name], expected, rtol=0, atol=1e-12), name


def test_an_adapter_without_a_weight_counts_whole_and_the_order_does_not_matter(bundle, adapters):
    one, two = adapters
    plain, whole, turned = (
        MODELS["tiny"](bundle=str(bundle), adapter=text).load().network.state_dict()
        for text in (f"{one},{two}", f"{one}@1,{two}@1.0", f"{two}, {one}")
    )
    assert all(torch.equal(plain[name], whole[name]) for name in plain)
    assert all(torch.allclose(plain[name], turned[name], atol=1e-6) for name in plain)


def test_weights_are_read_and_an_at_sign_may_be_part_of_a_folder(tmp_path):
    (tmp_path / "take@2").mkdir()
    text = f" a/export@0.5 ,b/export,,{tmp_path}/take@2,x@y/export,{tmp_path}/take@2@-1e-1"
    assert [(str(folder), weight) for folder, weight in parse_adapters(text)] == [
        ("a/export", 0.5),
        ("b/export", 1.0),
        (f"{tmp_path}/take@2", 1.0),
        ("x@y/export", 1.0),
        (f"{tmp_path}/take@2", -0.1),
    ]
    assert parse_adapters("") == []


@pytest.mark.parametrize("text", ["a/export@half", "a/export@", "a@nan", "a@inf", "@0.5"])
def test_a_weight_that_is_no_number_is_refused(text):
    with pytest.raises(CheckpointError, match=r"is not a weight; write FOLDER@0\.5"):
        parse_adapters(text)


def test_a_folder_without_an_adapter_and_one_of_another_model_are_named(bundle, adapters, tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path}/none: no adapter here: no {ADAPTER}"):
        load_network(bundle / "network", f"{adapters[0]},{tmp_path}/none@0.5")
    network = load_network(bundle / "network")
    save_network(network, network.state_dict(), tmp_path / "whole")
    with pytest.raises(
        CheckpointError, match="no adapter here: it holds a whole network; give it as network="
    ):
        load_network(bundle / "network", str(tmp_path / "whole"))
    other = write_bundle(tmp_path / "other", dim=64)
    wide = write_adapter(other, tmp_path / "wide", 3)
    with pytest.raises(CheckpointError, match=r"wide/\S+: an adapter of another model \(\S+ does not fit\)"):
        load_network(bundle / "network", str(wide))
