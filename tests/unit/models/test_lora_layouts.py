"""Adapters as peft makes them: what training exports is what was trained, in the layout of every program."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from diffdpo.errors import CheckpointError, ConfigError
from diffdpo.flow import interpolate
from diffdpo.models import MODELS
from diffdpo.models.adapters import ADAPTER_PREFIX, merge_adapters, read_adapter, save_adapter, write_adapter
from diffdpo.models.diffrhythm.checkpoints import load_network
from diffdpo.models.lora_layouts import write_comfyui, write_peft
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.objectives.kto import KTO
from diffdpo.training.audit import audit_parameters
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.lora import add_lora, check_dropout
from diffdpo.training.setup import build_optimizer, trainable

TARGETS = ["q_proj", "o_proj", "mlp.up_proj", "text_fusion_linears.0.0"]
BIASED = ["text_fusion_linears.0.0", "proj_out", "input_embed.proj"]
"""Layers with a bias."""
KINDS = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 5, "up_proj": 2},
        "alpha_pattern": {"q_proj": 7.0, "o_proj": 2.0},
    },
    "excluded": {"exclude_modules": ["o_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "bias": {"lora_bias": True},
    "together": {
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "exclude_modules": ["o_proj"],
    },
}


def arguments():
    generator = torch.Generator().manual_seed(0)
    song, noise = torch.randn(2, 2, 20, 8, generator=generator)
    return {
        "x": interpolate(song, noise, torch.tensor([0.3, 0.6])),
        "time": torch.tensor([0.7, 0.4]),
        "text": torch.randint(0, 4, (2, 20), generator=generator),
        "style": torch.randn(2, 16, generator=generator),
        "audio": torch.zeros(2, 20, 8),
        "start_time": torch.zeros(2),
        "duration": torch.ones(2),
    }


def adapted(bundle, kind):
    """A network with a trained adapter: no part of it is at its start."""
    network = load_network(bundle / "network")
    targets = BIASED if kind == "bias" else TARGETS
    add_lora(network, LoraConfig(rank=4, alpha=6.0, targets=targets, peft=KINDS[kind]), (), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainable(network):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def answer(network):
    with torch.no_grad():
        return network(**arguments())


@pytest.fixture(scope="module", params=KINDS)
def trained(request, bundle, tmp_path_factory):
    """An adapter of each kind: the network, its export, and what it answers."""
    network = adapted(bundle, request.param)
    folder = tmp_path_factory.mktemp(request.param) / "export"
    save_adapter(network, network.state_dict(), folder)
    return network, folder, answer(network)


def test_what_was_exported_merges_into_what_was_trained(bundle, trained):
    _, folder, expected = trained
    base, merged = (answer(load_network(bundle / "network", a)) for a in ("", str(folder)))
    assert (merged - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (base - expected).abs().max() > 1e-2 * expected.abs().max()


def test_every_trained_part_is_an_adapters_and_the_adapter_off_is_the_base(bundle, trained):
    network, _, _ = trained
    audit_parameters(network, build_optimizer(network, TrainConfig(), torch.device("cpu")), {}, lora=True)
    network.disable_adapters()
    off = answer(network)
    network.enable_adapters()
    assert torch.equal(off, answer(load_network(bundle / "network")))


def test_a_strength_is_a_share_of_the_change(bundle, trained):
    """W + 0.7 (W' - W), for DoRA too."""
    _, folder, _ = trained
    base, whole, part = (
        load_network(bundle / "network", a, dtype=torch.float64).state_dict()
        for a in ("", str(folder), f"{folder}@0.7")
    )
    changes = 0
    for name, weight in base.items():
        assert torch.allclose(part[name], weight + 0.7 * (whole[name] - weight), rtol=0, atol=1e-12)
        changes += int(not torch.equal(weight, whole[name]))
    assert changes >= 3


def test_diffusers_reads_its_layout(bundle, trained, tmp_path):
    state, config = read_adapter(trained[1])
    write_adapter(state, config, tmp_path, prefix=ADAPTER_PREFIX)
    network = load_network(bundle / "network")
    network.load_lora_adapter(str(tmp_path), use_safetensors=True)  # its default prefix is that of pipelines
    assert torch.allclose(answer(network), trained[2], atol=1e-6)
    assert read_adapter(tmp_path)[1] == config


def test_peft_reads_its_layout(bundle, trained, tmp_path):
    write_peft(*read_adapter(trained[1]), tmp_path)
    network = PeftModel.from_pretrained(load_network(bundle / "network"), str(tmp_path))
    assert torch.allclose(answer(network), trained[2], atol=1e-6)
    again, merged = read_adapter(tmp_path), load_network(bundle / "network", str(tmp_path))
    assert again[0].keys() == read_adapter(trained[1])[0].keys()
    assert torch.allclose(answer(merged), trained[2], atol=1e-5)


def comfyui_weight(weight, tensors, layer):
    """The weight as ComfyUI patches it: W + alpha/rank B A; for DoRA that, its rows scaled to their magnitudes."""
    down, up = (tensors[f"diffusion_model.{layer}.lora_{side}.weight"].double() for side in "AB")
    scale = float(tensors[f"diffusion_model.{layer}.alpha"]) / len(down)
    change = (scale * up.flatten(1) @ down.flatten(1)).view(weight.shape)
    magnitude = tensors.get(f"diffusion_model.{layer}.dora_scale")
    if magnitude is None:
        return weight + change
    direction = weight + change
    return direction * magnitude.double() / direction.flatten(1).norm(dim=1, keepdim=True)


def test_comfyui_finds_its_keys_and_the_weights_they_stand_for(bundle, trained, tmp_path):
    state, config = read_adapter(trained[1])
    path = tmp_path / "song.safetensors"
    if config["lora_bias"]:
        with pytest.raises(CheckpointError, match="ComfyUI has no place for this part"):
            write_comfyui(state, config, path)
        return
    write_comfyui(state, config, path)
    tensors = load_file(path)
    layers = {name.split(".lora_A")[0] for name in state if "lora_A" in name}
    base, merged = (load_network(bundle / "network", a, dtype=torch.float64) for a in ("", str(trained[1])))
    for layer in layers:
        expected = merged.get_submodule(layer).weight
        assert torch.allclose(
            comfyui_weight(base.get_submodule(layer).weight, tensors, layer), expected, atol=1e-6
        )
    assert torch.allclose(answer(load_network(bundle / "network", str(path))), trained[2], atol=1e-5)


def test_kohyas_spelling_is_read_too(bundle, tmp_path):
    network = adapted(bundle, "plain")
    save_adapter(network, network.state_dict(), tmp_path / "a")
    path = tmp_path / "a.safetensors"
    write_comfyui(*read_adapter(tmp_path / "a"), path)
    spelled = {
        n.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): t for n, t in load_file(path).items()
    }
    save_file(spelled, tmp_path / "b.safetensors")
    assert torch.allclose(
        answer(load_network(bundle / "network", str(tmp_path / "b.safetensors"))), answer(network), atol=1e-5
    )


def test_names_of_the_original_code_go_out_and_come_back(bundle, tmp_path):
    """A network that is called otherwise than its original gives the original's names to ComfyUI."""
    network = adapted(bundle, "plain")
    network.original_module = lambda name: "decoder." + name.replace("self_attn", "attn")
    save_adapter(network, network.state_dict(), tmp_path / "a")
    write_comfyui(*read_adapter(tmp_path / "a"), tmp_path / "c.safetensors", network)
    assert "diffusion_model.decoder.transformer_blocks.0.attn.q_proj.alpha" in load_file(
        tmp_path / "c.safetensors"
    )
    base = load_network(bundle / "network")
    base.original_module = network.original_module
    merge_adapters(base, str(tmp_path / "c.safetensors"))
    assert torch.allclose(answer(base), answer(network), atol=1e-5)


def test_a_dora_has_a_weight_alone_and_an_order_in_company(bundle, tmp_path):
    for kind in ("dora", "plain"):
        network = adapted(bundle, kind)
        save_adapter(network, network.state_dict(), tmp_path / kind)
    both = f"{tmp_path}/dora,{tmp_path}/plain"
    load_network(bundle / "network", both)
    with pytest.raises(CheckpointError, match="dora: a DoRA in a weighted sum"):
        load_network(bundle / "network", f"{both}@0.5")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"use_dore": True}, "LoraConfig has no field 'use_dore'. Did you mean 'use_dora'?"),
        ({"init_lora_weights": "pissa"}, "changes the weights below the adapter"),
        ({"init_lora_weights": "olora"}, "changes the weights below the adapter"),
        ({"init_lora_weights": "of tomorrow"}, "choose True, False, 'gaussian', 'orthogonal'"),
        ({"lora_bias": True}, "has no bias"),
        ({"bias": "all"}, "would be trained, which belongs to no adapter"),
        ({"modules_to_save": ["proj_out"]}, "would be trained, which belongs to no adapter"),
        ({"rank_pattern": {"q_proj": -1}}, "peft cannot make this adapter"),
    ],
)
def test_what_an_adapter_cannot_be_is_one_line(bundle, fields, says):
    with pytest.raises(ConfigError) as caught:
        add_lora(load_network(bundle / "network"), LoraConfig(targets=["q_proj"], peft=fields), (), seed=0)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["r", "lora_alpha", "target_modules"])
def test_what_has_a_key_of_its_own_is_set_there(name):
    with pytest.raises(ValueError, match=rf"lora\.peft\.{name}: set lora\."):
        LoraConfig(peft={name: 4})


def test_dropout_is_for_single_songs():
    cfg = TrainConfig(lora=LoraConfig(peft={"lora_dropout": 0.1}))
    check_dropout(cfg, FlowMatching())
    for objective in (DPO(), KTO()):
        with pytest.raises(
            ConfigError, match=r"train\.lora\.peft\.lora_dropout: every pass would draw a mask"
        ):
            check_dropout(cfg, objective)
    split = TrainConfig(split_backward=True, lora=cfg.lora)
    with pytest.raises(ConfigError, match="two passes"):
        check_dropout(split, FlowMatching())


def test_the_model_takes_a_file_as_it_takes_a_folder(bundle, tmp_path):
    network = adapted(bundle, "plain")
    save_adapter(network, network.state_dict(), tmp_path / "a")
    path = Path(tmp_path / "c.safetensors")
    write_comfyui(*read_adapter(tmp_path / "a"), path)
    loaded = MODELS["tiny"](bundle=str(bundle), adapter=f"{path}@0.7").load().network
    again = load_network(bundle / "network", f"{tmp_path / 'a'}@0.7")
    assert torch.allclose(answer(loaded), answer(again), atol=1e-6)
