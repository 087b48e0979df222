"""Adapters merged into a network with weights: the base plus the weighted sum of what each of them learned."""

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.bundle import write_bundle

from diffdpo.errors import CheckpointError, ConfigError
from diffdpo.models import MODELS
from diffdpo.models.adapters import ADAPTER, parse_adapters, read_adapter, save_adapter
from diffdpo.models.checkpoints import save_network
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.checkpoints import load_network
from diffdpo.parts import build_model
from diffdpo.recipes.next_model import next_model
from diffdpo.recipes.round import RoundRun
from diffdpo.registry import Choice
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


COMMAS = ("a", "lr=1e-4,beta=500", ",", "a,b,c", "x@0.5,y", "b")


@given(
    st.lists(st.tuples(st.sampled_from(COMMAS), st.sampled_from(["", "@0.5", "@-2"])), min_size=1, max_size=4)
)
def test_a_comma_of_a_folder_that_exists_is_its_own(tmp_path_factory, entries):
    """The expected folders are those that the text was joined from."""
    root = tmp_path_factory.getbasetemp() / "commas"
    for name in COMMAS:
        (root / name / "export").mkdir(parents=True, exist_ok=True)
    texts = [f"{root}/{name}/export{weight}" for name, weight in entries]
    expected = [(root / name / "export", float(weight[1:] or 1)) for name, weight in entries]
    assert parse_adapters(",".join(texts)) == expected
    assert parse_adapters(" , ".join(texts)) == expected
    assert parse_adapters(texts) == expected


def test_the_longest_folder_that_exists_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    assert parse_adapters("a,b") == [(Path("a"), 1.0), (Path("b"), 1.0)]
    Path("a,b").mkdir()
    assert parse_adapters("a,b") == [(Path("a,b"), 1.0)]
    assert parse_adapters(["a", "b@2"]) == [(Path("a"), 1.0), (Path("b"), 2.0)]
    assert parse_adapters("") == parse_adapters([]) == parse_adapters([""]) == []


def test_rounds_add_adapters_whose_folders_have_commas(bundle, tmp_path):
    """Three rounds under a folder with commas: the model is the base and the sum of all three adapters."""
    out = tmp_path / "lr=1e-4,beta=500"
    exports = [write_adapter(bundle, out / f"round-{k}" / "export", k) for k in (1, 2, 3)]
    args = {"bundle": str(bundle)}
    for start in ({}, {"adapter": [str(exports[0])]}):
        model = Choice("tiny", {**args, **start})
        for export in exports[1:] if start else exports:
            model = next_model(model, export, lora=True)
        state = build_model(model).network.state_dict()
        base = load_network(bundle / "network").state_dict()
        for name, change in changes(exports[0], 5 / 3).items():
            total = change + changes(exports[1], 5 / 3)[name] + changes(exports[2], 5 / 3)[name]
            assert torch.allclose(state[name].double(), base[name].double() + total, atol=1e-5)


@pytest.mark.parametrize("start", [{}, {"adapter": ["a"]}, {"adapters": [{"path": "a"}]}])
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_the_strength_of_a_round_scales_what_it_learnt(bundle, tmp_path, start, strength):
    """The network is on the line through the base and the model after training, and earlier adapters stay."""
    first, export = (write_adapter(bundle, tmp_path / name, k) for k, name in enumerate("ab"))
    args = json.loads(json.dumps(start).replace('"a"', json.dumps(str(first))))
    before = Choice("tiny", {"bundle": str(bundle), **args})
    states = [
        build_model(model).network.state_dict()
        for model in (before, *(next_model(before, export, lora=True, strength=s) for s in (1.0, strength)))
    ]
    for name, start_weight in states[0].items():
        change = states[1][name].double() - start_weight
        assert torch.allclose(states[2][name].double(), start_weight + strength * change, atol=1e-5)


def test_a_strength_needs_an_adapter():
    cfg = RoundRun(out="o", mining_prompts="m", evaluation_prompts="e", adapter_strength=2.0)
    with pytest.raises(ConfigError, match="adapter_strength scales an adapter"):
        cfg.check_parts()
    with pytest.raises(ValueError, match="adapter_strength"):
        RoundRun(out="o", mining_prompts="m", evaluation_prompts="e", adapter_strength=0.0)


LAYER = "transformer_blocks.0.self_attn.q_proj"
CONFIG = {"r": 3, "lora_alpha": 3, "target_modules": [LAYER], "peft_type": "LORA"}


def write_lora(folder, bundle, metadata, names=("A", "B"), prefix=""):
    """An adapter of ones on one layer of the bundle's network, with any text as its config."""
    weight = load_network(bundle / "network").get_submodule(LAYER).weight
    tensors = {"A": torch.ones(3, weight.shape[1]), "B": torch.ones(weight.shape[0], 3)}
    folder.mkdir(parents=True)
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(
        {f"{prefix}{LAYER}.lora_{side}.weight": tensors[side] for side in names},
        folder / ADAPTER,
        metadata={"format": "pt", "lora_adapter_metadata": text},
    )
    return folder


@pytest.mark.parametrize(
    "extra", [{"key_of_tomorrow": off} for off in (None, False, "", [], {})] + [{"peft_version": "99.0"}, {}]
)
@pytest.mark.parametrize("prefix", ["", "transformer.", "_orig_mod.", "transformer._orig_mod."])
def test_what_a_newer_peft_left_off_does_not_matter(bundle, tmp_path, extra, prefix):
    folder = write_lora(tmp_path / "a", bundle, {**CONFIG, **extra}, prefix=prefix)
    base, merged = (load_network(bundle / "network", adapter) for adapter in ("", str(folder)))
    change = merged.get_submodule(LAYER).weight - base.get_submodule(LAYER).weight
    assert torch.allclose(change, torch.full_like(change, 3.0), atol=1e-5)  # B A is 3 everywhere


@pytest.mark.parametrize("value", [True, 0, 1, "corda", ["x"], {"a": 1}])
@pytest.mark.parametrize(("version", "needs"), [(None, "a newer peft"), ("99.1", "peft 99.1")])
def test_what_only_a_newer_peft_can_do_is_refused_by_its_name(bundle, tmp_path, value, version, needs):
    config = {**CONFIG, "key_of_tomorrow": value, **({"peft_version": version} if version else {})}
    folder = write_lora(tmp_path / "a", bundle, config)
    with pytest.raises(CheckpointError) as caught:
        load_network(bundle / "network", str(folder))
    assert str(caught.value) == (
        f"{folder / ADAPTER}: an adapter of {needs}: key_of_tomorrow={value!r} is unknown to peft "
        f"{metadata.version('peft')}, which is installed; pip install --upgrade peft"
    )


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("{", "is no JSON"),
        ("[1]", "is a list, not an object"),
        ({**CONFIG, "r": -3}, "does not fit its tensors"),
        ({**CONFIG, "r": 2}, "does not fit its tensors"),
        ({**CONFIG, "r": "three"}, "does not fit its tensors"),
        ({**CONFIG, "init_lora_weights": "of tomorrow"}, "does not fit its tensors"),
    ],
)
def test_a_config_that_cannot_be_right_is_one_line(bundle, tmp_path, config, text):
    folder = write_lora(tmp_path / "a", bundle, config)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_network(bundle / "network", str(folder))
    assert str(caught.value).startswith(f"{folder / ADAPTER}: its lora_adapter_metadata")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [("A",), ("B",), ()])
def test_half_an_adapter_is_refused(bundle, tmp_path, names):
    """It would change nothing, in silence."""
    folder = write_lora(tmp_path / "a", bundle, CONFIG, names)
    with pytest.raises(CheckpointError, match="no whole adapter"):
        load_network(bundle / "network", str(folder))
