"""One network in every layout it is found in: loaded strictly, once, and written back bit for bit."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.launch import verb

from diffdpo.errors import CheckpointError, DataError
from diffdpo.models import MODELS
from diffdpo.models.adapters import ADAPTER, read_adapter, save_adapter
from diffdpo.models.checkpoints import save_network
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.checkpoints import load_network, read_network, save_published
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.models.diffrhythm.published import wrap
from diffdpo.training.config import LoraConfig
from diffdpo.training.setup import add_lora
from diffdpo.weight_files import WEIGHTS, assign


def make(*, full=False, heads=32, seed=0):
    torch.manual_seed(seed)
    network = DiffRhythmTransformer(
        dim=64, depth=2, num_attention_heads=heads, ff_mult=2, latent_channels=8, text_num_embeds=4, text_dim=16,
        style_dim=16, cond_dim=16, conv_layers=1, conv_pos_groups=4, max_frames=6144 if full else 2048,
        duration_embedding=full,
    )  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return make()


def state_of(network):
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def sizes(network):
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


def equal(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def write_folder(network, folder):
    save_network(network, state_of(network), folder)
    return folder


def write_cfm(network, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_published(state_of(network), path)
    return path


def write_training(network, path):
    average = {f"ema_model.{name}": tensor + 1 for name, tensor in wrap(state_of(network)).items()}
    steps = {"initted": torch.tensor(True), "step": torch.tensor(3)}
    content = {
        "model_state_dict": wrap(state_of(network)),
        "ema_model_state_dict": average | steps,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "step": 3,
    }
    torch.save(content, path)
    return path


def write_bare(network, path):
    save_file(state_of(network), path)
    return path


@torch.no_grad()
def predict(network):
    generator = torch.Generator().manual_seed(3)
    x, audio = (torch.randn(1, 20, 8, generator=generator) for _ in range(2))
    return network(
        x, torch.tensor([0.3]), text=torch.arange(20)[None] % 5, style=torch.ones(1, 16), audio=audio,
        start_time=torch.tensor([0.1]),
        duration=torch.tensor([0.5]) if network.config.duration_embedding else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_folder, "ours"),
        (write_cfm, "cfm_model.pt"),
        (write_cfm, "cfm.safetensors"),
        (write_training, "model_last.pt"),
        (write_bare, "bare.safetensors"),
    ],
)
def test_every_layout_gives_the_same_network(network, tmp_path, write, name):
    loaded = load_network(write(network, tmp_path / name), release="v1.2-base")
    assert equal(state_of(loaded), state_of(network))
    assert sizes(loaded) == sizes(network)
    assert torch.equal(predict(loaded), predict(network))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_moving_average_is_taken_when_it_is_asked_for(network, tmp_path):
    loaded = load_network(write_training(network, tmp_path / "m.pt"), release="v1.2-base", ema=True)
    expected = {name: tensor + 1 for name, tensor in state_of(network).items()}
    assert equal(state_of(loaded), expected)


def test_the_release_decides_how_the_network_attends(network, tmp_path):
    path = write_cfm(network, tmp_path / "cfm_model.pt")
    both, causal = (load_network(path, release=name) for name in ("v1.2-base", "v1.0-base"))
    assert (both.config.causal, causal.config.causal) == (False, True)
    assert not torch.allclose(predict(both), predict(causal), atol=1e-3)
    with pytest.raises(CheckpointError, match="say which model it is with release="):
        load_network(path)
    folder = write_cfm(network, tmp_path / "DiffRhythm-base" / "cfm_model.pt").parent
    assert load_network(folder).config.causal


def test_a_release_and_a_folder_of_ours_come_from_the_hub(network, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for repo in ("ASLP-lab--DiffRhythm-1_2-full", "somebody--aligned"):
        (tmp_path / f"models--{repo}" / "refs").mkdir(parents=True)
        (tmp_path / f"models--{repo}" / "refs" / "main").write_text("28ad63c")
    full = make(full=True)
    write_cfm(full, tmp_path / "models--ASLP-lab--DiffRhythm-1_2-full/snapshots/28ad63c/cfm_model.pt")
    write_folder(network, tmp_path / "models--somebody--aligned" / "snapshots" / "28ad63c")
    for name in ("v1.2-full", "ASLP-lab/DiffRhythm-1_2-full"):
        loaded = load_network(name)
        assert (loaded.config.max_frames, loaded.config.duration_embedding) == (6144, True)
        assert equal(state_of(loaded), state_of(full))
    assert equal(state_of(load_network("somebody/aligned")), state_of(network))
    with pytest.raises(DataError, match=r"ASLP-lab/DiffRhythm-base/cfm_model\.pt could not be fetched"):
        load_network("v1.0-base")


def test_a_file_that_does_not_fit_is_described(tmp_path):
    full = make(full=True)
    path = write_cfm(full, tmp_path / "cfm_model.pt")
    with pytest.raises(
        CheckpointError,
        match=r"4 unexpected, first duration_time_embed\.\S+ \(16, 256\), .*look like DiffRhythm v1\.2-full",
    ):
        load_network(path, release="v1.2-base")
    state = state_of(full)
    state["proj_out.bias"] = torch.zeros(9)
    state["proj_out.other"] = state.pop("norm_out.linear.bias")
    save_published(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_network(path)
    for part in (
        f"{path}: the weights are of another model: ",
        "1 missing, first norm_out.linear.bias (128,)",
        "1 unexpected, first proj_out.other (128,)",
        "1 misshapen, first proj_out.bias (9,) instead of (8,)",
    ):
        assert part in str(caught.value)
    save_file({"decoder.layers.0.bias": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"219 missing, .* they look like a VAE of stable-audio-tools"):
        load_network(tmp_path / "vae.safetensors", release="v1.2-base")


def test_sizes_no_network_can_have_are_the_files_fault(network, tmp_path):
    state = state_of(network) | {"input_embed.proj.weight": torch.zeros(64, 3)}
    save_published(state, tmp_path / "cfm_model.pt")
    with pytest.raises(CheckpointError, match=r"no network has such sizes \(style_dim must be positive"):
        load_network(tmp_path / "cfm_model.pt", release="v1.2-base")


@dataclass
class Trap:
    function: Callable[..., object]

    def __reduce__(self):
        return self.function, (str(Path.cwd() / "sprung"),)


@pytest.mark.parametrize(
    "function", [os.mkdir, shutil.rmtree, eval]
)  # a forbidden module's, a module's, no module's
def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, function):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": Trap(function)}, "cfm_model.pt")
    with pytest.raises(
        CheckpointError, match=rf"holds a [\w.]*{function.__name__} .*reading one could run code"
    ):
        load_network(tmp_path, release="v1.2-base")
    assert not Path("sprung").exists()


def test_damaged_and_ancient_files_are_named(network, tmp_path):
    path = write_cfm(network, tmp_path / "cfm_model.pt")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"cfm_model\.pt: cannot be read as tensors"):
        load_network(path, release="v1.2-base")
    torch.save(wrap(state_of(network)), path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"saved by torch 1\.6 or newer"):
        load_network(path, release="v1.2-base")
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list, not a dictionary"):
        load_network(path, release="v1.2-base")
    folder = write_folder(network, tmp_path / "ours")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_network(folder)


@pytest.mark.parametrize("name", ["cfm_model.pt", "cfm.safetensors"])
def test_weights_stay_in_the_file_until_they_are_written_to(network, tmp_path, name):
    """No second copy: parameters are the mapped file's own memory, and writing to them leaves the file alone."""
    path = write_cfm(network, tmp_path / name)
    checkpoint = read_network(path, release="v1.2-base")
    places = {key: tensor.data_ptr() for key, tensor in checkpoint.state.items()}
    built = checkpoint.build()
    assert all(parameter.is_meta for parameter in built.parameters())
    assign(built, checkpoint.state, checkpoint.location, torch.float32)
    assert checkpoint.state == {}
    assert {key: parameter.data_ptr() for key, parameter in built.named_parameters()} == places
    before = path.read_bytes()
    with torch.no_grad():
        built.proj_out.weight.zero_()
    assert path.read_bytes() == before


def test_half_precision_is_widened(network, tmp_path):
    halves = {name: tensor.half() for name, tensor in state_of(network).items()}
    save_published(halves, tmp_path / "cfm_model.pt")
    loaded = load_network(tmp_path, release="v1.2-base")
    assert equal(state_of(loaded), {name: tensor.float() for name, tensor in halves.items()})


def convert(*arguments, code=0):
    return verb("convert", *arguments, code=code)


@pytest.fixture(scope="module")
def adapter(network, tmp_path_factory):
    adapted, folder = make(), tmp_path_factory.mktemp("adapter")
    add_lora(adapted, LoraConfig(rank=2, alpha=3), DiffRhythm.lora_targets, seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(adapted, adapted.state_dict(), folder)
    return folder, predict(adapted)


def test_there_and_back_no_bit_changes(network, tmp_path):
    halves = {name: tensor.half() for name, tensor in state_of(network).items()}
    first = tmp_path / "cfm_model.pt"
    save_published(halves, first)
    convert(first, tmp_path / "ours", "--release", "v1.2-base")
    assert (
        json.loads((tmp_path / "ours" / "config.json").read_text())["_class_name"] == "DiffRhythmTransformer"
    )
    assert equal(load_file(tmp_path / "ours" / WEIGHTS), halves)
    convert(tmp_path / "ours", tmp_path / "back" / "cfm_model.pt")
    convert(tmp_path / "ours", tmp_path / "back" / "cfm.safetensors")
    back = torch.load(tmp_path / "back" / "cfm_model.pt", weights_only=True)
    assert list(back) == ["model_state_dict"]
    assert list(back["model_state_dict"]) == list(wrap(halves))
    for found in (back["model_state_dict"], load_file(tmp_path / "back" / "cfm.safetensors")):
        assert all(torch.equal(found[f"transformer.{name}"], tensor) for name, tensor in halves.items())
        assert all(tensor.dtype == torch.float16 for tensor in found.values())
    assert not list(tmp_path.rglob("*partial*"))


def test_a_merged_adapter_plays_without_it(network, adapter, tmp_path):
    folder, expected = adapter
    ours = write_folder(network, tmp_path / "ours")
    convert(ours, tmp_path / "cfm_model.pt", "--adapter", folder)
    aligned = load_network(tmp_path / "cfm_model.pt", release="v1.2-base")
    assert equal(state_of(aligned), state_of(load_network(ours, str(folder))))
    assert torch.allclose(predict(aligned), expected, atol=1e-5)
    assert not torch.allclose(predict(network), expected, atol=1e-3)


def test_a_kept_adapter_goes_there_and_back_beside_an_untouched_network(network, adapter, tmp_path):
    folder, expected = adapter
    ours = write_folder(network, tmp_path / "ours")
    there, back = tmp_path / "there" / "cfm_model.pt", tmp_path / "back"
    convert(ours, there, "--adapter", folder, "--keep-adapter")
    named = load_file(there.parent / ADAPTER)
    assert named
    assert all(name.startswith("transformer.transformer_blocks.") for name in named)
    options = ("--release", "v1.2-base", "--adapter", there.parent, "--keep-adapter")
    convert(there, back, *options)
    assert equal(load_file(back / WEIGHTS), load_file(ours / WEIGHTS))
    (state, config), (first, settings) = read_adapter(back), read_adapter(folder)
    assert equal(state, first)
    assert config == settings
    assert config["lora_alpha"] == 3
    for place in (there.parent, back):  # published and bare names merge alike
        merged = load_network(ours, str(place))
        assert torch.allclose(predict(merged), expected, atol=1e-5)


def test_a_conversion_overwrites_nothing_and_says_why_it_cannot_be_done(network, adapter, tmp_path):
    ours = write_folder(network, tmp_path / "ours")
    assert "ours: exists" in convert(ours, ours, code=2)
    two = write_folder(make(heads=2), tmp_path / "two")
    published = convert(two, tmp_path / "cfm_model.pt", code=2)
    assert "has 2 attention heads; the published code always builds 32" in published
    assert "--keep-adapter keeps one adapter, got 0" in convert(
        ours, tmp_path / "x.pt", "--keep-adapter", code=2
    )
    twice = ("--keep-adapter", "--adapter", f"{adapter[0]},{adapter[0]}")
    assert "--keep-adapter keeps one adapter, got 2" in convert(ours, tmp_path / "x.pt", *twice, code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "two"]


def test_the_precision_changes_only_when_asked(network, tmp_path):
    ours = write_folder(network, tmp_path / "ours")
    convert(ours, tmp_path / "half.pt", "--dtype", "float16")
    saved = torch.load(tmp_path / "half.pt", weights_only=True)["model_state_dict"]
    expected = wrap({name: tensor.half() for name, tensor in state_of(network).items()})
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())


def test_a_model_is_configured_by_its_checkpoint(network, tmp_path):
    path = write_cfm(network, tmp_path / "cfm_model.pt")
    model = MODELS["diffrhythm"](checkpoint=str(path), release="v1.2-base").load()
    assert (model.spec.window, model.spec.max_frames) == ("fixed", 2048)
    other = write_folder(make(full=True, seed=1), tmp_path / "export")  # a training run's goes before it
    model = MODELS["diffrhythm"](checkpoint=str(path), network=str(other)).load()
    assert (model.spec.window, model.spec.max_frames) == ("exact", 6144)
    with pytest.raises(ValueError, match="needs a checkpoint"):
        MODELS["diffrhythm"]()
