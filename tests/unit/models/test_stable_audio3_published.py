"""Stable Audio 3's published files: the key map and its inverse, listings of the real sizes, what is refused."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderSAME, StableAudio3DiTModel
from safetensors.torch import load_file, save_file
from support.model_contract import one_line_error
from support.stable_audio3 import (
    dit,
    duration_embedder,
    model_config,
    published_state,
    same,
    write_diffusers,
    write_published,
)

from diffdpo.errors import CheckpointError, DataError
from diffdpo.models import MODELS
from diffdpo.models.stable_audio3 import published
from diffdpo.models.stable_audio3.files import read_files
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import prompt_request
from diffdpo.sampling.sampler import sample_batch
from diffdpo.types import Prompt
from diffdpo.weight_files import shapes


def load(folder, **arguments):
    return MODELS["stable_audio_3"](checkpoint=str(folder), **arguments).load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("published")
    write_published(path)
    return path


@pytest.mark.parametrize("differential", [True, False])
def test_published_files_are_the_networks_they_were_written_from(tmp_path, differential):
    write_published(tmp_path, differential=differential)
    model = load(tmp_path)
    for module, original in (
        (model.network, dit(differential)),
        (model.codec.module, same()),
        (model.encoders._module("duration"), duration_embedder()),
    ):
        state, expected = module.state_dict(), original.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert model.network.config["use_differential_attention"] == differential


@pytest.mark.parametrize("differential", [True, False])
def test_a_network_is_published_as_it_was_and_an_adapter_changes_the_same_rows(differential):
    network = dit(differential)
    expected = published_state(network)
    written = published.publish_network(network.state_dict(), differential=differential)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    layer = "transformer_blocks.1.self_attn.to_qkv"
    rows = network.state_dict()[f"{layer}.weight"].shape[0]
    adapter = {f"{layer}.lora_A.weight": torch.randn(2, 32), f"{layer}.lora_B.weight": torch.randn(rows, 2)}
    change = adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]
    place = "model.model.transformer.layers.1.self_attn.to_qkv"
    moved = published.publish_network(adapter, differential=differential)
    assert moved.keys() == {f"{place}.lora_A.weight", f"{place}.lora_B.weight"}
    published_change = moved[f"{place}.lora_B.weight"] @ moved[f"{place}.lora_A.weight"]
    whole = published.publish_network({f"{layer}.weight": change}, differential=differential)
    assert torch.equal(published_change, whole[f"{place}.weight"])


def test_both_layouts_are_one_model(folder, tmp_path):
    write_diffusers(tmp_path)
    one, two = load(folder), load(tmp_path)
    assert one.spec == two.spec
    prompt = Prompt(id="p", text="slow jazz", duration_s=0.7)
    songs = [
        sample_batch(
            model,
            [prompt_request(prompt, "p", model.spec.frames(0.7), model.embed)],
            SamplingConfig(steps=3),
            seed=0,
        )[0]
        for model in (one, two)
    ]
    assert torch.equal(*songs)
    assert (one.decode(songs[0]).samples == two.decode(songs[1]).samples).all()
    other = load(folder, behavior="diffusers")
    assert one.fingerprint == load(folder).fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("sizes", "blocks"),
    [
        ({}, 24),
        ({"embed_dim": 1024, "depth": 20, "num_heads": 16, "use_differential_attention": False}, 20),
    ],
    ids=["medium", "small"],
)
def test_the_listing_of_a_published_size_maps_onto_the_whole_network(sizes, blocks):
    """On the meta device: every published name becomes one of diffusers', of its shape, and none is left over."""
    with torch.device("meta"):
        network = StableAudio3DiTModel(**sizes)
    state = published_state(network, durations=duration_embedder())
    names = set(state)
    assert "model.model.transformer.layers.0.self_attn.to_qkv.weight" in names
    assert f"model.model.transformer.layers.{blocks - 1}.ff.ff.0.proj.weight" in names
    assert {"model.model.transformer.project_in.weight", "model.model.transformer.memory_tokens"} <= names
    parts = published.split_published(state, "here")
    assert not state
    assert shapes(parts.network) == shapes(network.state_dict())
    config = published.network_config(shapes(parts.network), "here")
    assert all(network.config[name] == value for name, value in config.items())


@pytest.mark.parametrize(
    ("sizes", "millions"), [({}, 107), ({"encoder_channels": 256, "encoder_transformer_depths": (12,)}, 852)]
)
def test_the_listing_of_a_published_autoencoder_maps_onto_the_whole_one(sizes, millions):
    with torch.device("meta"):
        codec = AutoencoderSAME(**sizes)
    state = published_state(dit(), codec)
    assert "pretransform.model.decoder.layers.3.transformers.0.self_attn.to_qkv.weight" in state
    assert "pretransform.model.encoder.layers.2.weight" in state
    parts = published.split_published(state, "here")
    assert shapes(parts.codec) == shapes(codec.state_dict())
    assert sum(p.numel() for p in codec.parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_a_distilled_checkpoint_says_so(tmp_path, folder):
    write_published(tmp_path, distilled=True)
    model = load(tmp_path)
    assert (model.unconditional, len(model.spec.times)) == ((), 9)
    assert load(folder).spec.times is None
    prompt = Prompt(id="p", text="jazz", duration_s=0.5)
    request = prompt_request(prompt, "p", model.spec.frames(0.5), model.embed)
    with one_line_error("guidance_scale=1"):
        sample_batch(model, [request], SamplingConfig(steps=8), seed=0)
    with one_line_error("sampling.steps=8", Exception):
        sample_batch(model, [request], SamplingConfig(steps=12, guidance_scale=1.0), seed=0)


def test_the_longest_song_is_the_checkpoints(folder):
    model = load(folder)
    assert model.spec.max_frames == 384 * 25
    assert model.spec.frames(10.0) == 16 * 25
    assert model.spec.frames(380.0) == 384 * 25  # no headroom beyond what the network knows
    request = prompt_request(
        Prompt(id="p", text="x", duration_s=385.0), "p", model.spec.frames(385.0), model.embed
    )
    with one_line_error("longer than this model's"):
        sample_batch(model, [request], SamplingConfig(steps=1), seed=0)


def test_prompts_that_the_model_cannot_take_are_refused(folder):
    model = load(folder)
    for prompt, problem in (
        (Prompt(id="p", text="x" * 256), "257 tokens, this model takes 256"),
        (Prompt(id="p", text="x", lyrics="la la"), "instrumental"),
        (Prompt(id="p", text="x", controls=(("bpm", 90),)), "no control 'bpm'"),
    ):
        with one_line_error(problem, DataError):
            model.embed(prompt)


def change(folder, tmp_path, edit=None, config=None):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    save_file(edit(state) if edit else state, copy / "model.safetensors")
    if config is not None:
        (copy / "model_config.json").write_text(json.dumps(config))
    return copy


LAYER = "model.model.transformer.layers.1."


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda s: {"lora_A.weight": torch.ones(2)}, "LoRA adapter"),
        (lambda s: {"decoder.layers.0.weight": torch.ones(2)}, "ACE-Step"),
        (
            lambda s: {n: t for n, t in s.items() if n != LAYER + "ff.ff.2.bias"},
            "1 missing.*blocks.1.ff.proj_out.bias",
        ),
        (lambda s: s | {LAYER + "more": torch.ones(2)}, "1 unexpected"),
        (lambda s: s | {LAYER + "self_attn.to_out.weight": torch.ones(2, 2)}, "1 misshapen"),
        (lambda s: {n: t for n, t in s.items() if "seconds_total" not in n}, "model_config.json"),
        (lambda s: {n: t for n, t in s.items() if "layers" not in n}, "no whole network"),
    ],
)
def test_files_of_another_kind_are_refused_in_one_line(folder, tmp_path, edit, problem):
    with one_line_error(f"model.safetensors.*{problem}", CheckpointError):
        load(change(folder, tmp_path, edit))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (model_config(window=None), "1 misshapen, first decoder.blocks.0.mapping.weight_v"),
        ({}, "model_config.json of Stable Audio 3"),
        ([], "no configuration of a network"),
    ],
)
def test_configurations_of_another_kind_are_refused_in_one_line(folder, tmp_path, config, problem):
    with one_line_error(problem, CheckpointError):
        load(change(folder, tmp_path, config=config))


def test_the_small_model_attends_in_chunks_and_has_whole_ones(tmp_path):
    """Its autoencoder has a wider convolution behind the decoder, and songs of an even number of frames."""
    write_published(tmp_path, window=None)
    state = load_file(tmp_path / "model.safetensors")
    name = "pretransform.model.decoder.layers.3.mapping.weight_v"
    state[name] = state[name].repeat(1, 1, 3)
    save_file(state, tmp_path / "model.safetensors")
    model = load(tmp_path)
    assert model.codec.module.decoder.blocks[0].attention.size == 8
    assert [model.spec.frames(seconds) for seconds in (0.01, 0.05, 0.09)] == [152, 152, 154]
    latents = torch.randn(7, 8)
    sound = model.decode(latents)
    assert sound.samples.shape == (2, 7 * 32)
    assert model.encode(sound).shape == (7, 8)


def test_a_file_without_its_configuration_is_refused(folder, tmp_path):
    copy = change(folder, tmp_path)
    (copy / "model_config.json").unlink()
    with one_line_error("model_config.json: no such file", CheckpointError):
        read_files(str(copy / "model.safetensors"))


def test_a_folder_without_a_text_encoder_is_refused(folder, tmp_path):
    model = load(folder, text_encoder=str(tmp_path))
    with one_line_error("text_encoder", CheckpointError):
        model.embed(Prompt(id="p", text="x"))
