"""Which DiffRhythm a file holds, told from names and shapes."""

import inspect
import json
from pathlib import Path

import pytest
import torch

from diffdpo.errors import CheckpointError, ConfigError
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.models.diffrhythm.published import (
    RELEASES,
    config_of,
    looks_like,
    release_of,
    unwrap,
    wrap,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "diffrhythm"
STATE = {"proj_out.weight": torch.ones(2, 3), "transformer_blocks.0.input_layernorm.weight": torch.zeros(3)}
EMA = {name: tensor + 5 for name, tensor in STATE.items()}


def listing(name):
    shapes = json.loads((GOLDEN / f"diffrhythm_{name}_state_dict.json").read_text())["state_dict"]
    return {key.removeprefix("transformer."): tuple(shape) for key, shape in shapes.items()}


BASE, FULL = listing("base_95s_max2048"), listing("full_285s_max6144_v1_2")


def with_prefix(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


AVERAGE = with_prefix("ema_model.transformer.", EMA) | {
    "initted": torch.tensor(True), "step": torch.tensor(7), **with_prefix("online_model.transformer.", STATE),
}  # fmt: skip
TRAINING = {
    "model_state_dict": with_prefix("transformer.", STATE),
    "ema_model_state_dict": AVERAGE,
    "optimizer_state_dict": {"state": {}},
    "step": 7,
}


@pytest.mark.parametrize(
    ("saved", "ema", "expected"),
    [
        ({"model_state_dict": with_prefix("transformer.", STATE)}, False, STATE),
        (with_prefix("transformer.", STATE), False, STATE),
        (with_prefix("module.transformer.", STATE), False, STATE),
        (STATE, False, STATE),
        (AVERAGE, False, EMA),
        (AVERAGE, True, EMA),
        ({"ema_model_state_dict": AVERAGE}, False, EMA),
        (TRAINING, False, STATE),
        (TRAINING, True, EMA),
        (with_prefix("transformer.", STATE | {"rotary_emb.inv_freq": torch.ones(2)}), False, STATE),
    ],
)
def test_every_layout_holds_the_same_network(saved, ema, expected):
    found = unwrap(saved, "file", ema=ema)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_wrapping_is_undone_by_unwrapping():
    assert set(wrap(STATE)) == {
        "transformer.proj_out.weight",
        "transformer.transformer_blocks.0.input_layernorm.weight",
    }
    assert unwrap(wrap(STATE), "file").keys() == STATE.keys()


def test_a_file_without_what_is_asked_for_is_refused():
    with pytest.raises(CheckpointError, match="file: holds no moving average"):
        unwrap(wrap(STATE), "file", ema=True)
    with pytest.raises(CheckpointError, match="file: holds no tensors; keys: config, step"):
        unwrap({"config": {}, "step": 3}, "file")
    with pytest.raises(CheckpointError, match="more than one network"):
        unwrap(STATE | wrap(STATE), "file")


def test_the_four_releases():
    facts = {name: (r.causal, r.max_frames, r.duration_embedding) for name, r in RELEASES.items()}
    assert facts == {
        "v1.0-base": (True, 2048, False),
        "v1.0-full": (True, 6144, False),
        "v1.2-base": (False, 2048, False),
        "v1.2-full": (False, 6144, True),
    }
    assert {release.weights.license for release in RELEASES.values()} == {"Apache-2.0"}


@pytest.mark.parametrize(
    ("where", "named", "release"),
    [
        ("x/cfm_model.pt", "v1.0-full", "v1.0-full"),
        ("x/DiffRhythm-base/cfm_model.pt", "", "v1.0-base"),
        ("x/DiffRhythm-base/cfm_model.pt", "v1.2-base", "v1.2-base"),
        ("hub/models--ASLP-lab--DiffRhythm-1_2/snapshots/28ad63c/cfm_model.pt", "", "v1.2-base"),
        ("hub/models--ASLP-lab--DiffRhythm-full/snapshots/28ad63c/cfm_model.pt", "", "v1.0-full"),
    ],
)
def test_a_release_is_named_by_the_user_or_by_its_folder(where, named, release):
    assert release_of(where, BASE, named) is RELEASES[release]


def test_only_the_duration_embedding_shows_in_the_weights():
    assert release_of("x/cfm_model.pt", FULL) is RELEASES["v1.2-full"]
    with pytest.raises(
        CheckpointError, match=r"v1\.0 or v1\.2-base\. .*release=, one of v1\.0-base, v1\.0-full"
    ):
        release_of("x/cfm_model.pt", BASE)
    with pytest.raises(ConfigError, match=r"unknown release 'v1\.2-bas'. Did you mean 'v1\.2-base'"):
        release_of("x/cfm_model.pt", BASE, "v1.2-bas")


@pytest.mark.parametrize(("release", "shapes"), [("v1.2-base", BASE), ("v1.2-full", FULL)])
def test_the_full_size_networks_have_the_default_sizes(release, shapes):
    with torch.device("meta"):
        network = DiffRhythmTransformer(**config_of(RELEASES[release], shapes))
        default = DiffRhythmTransformer(
            max_frames=RELEASES[release].max_frames, duration_embedding=release == "v1.2-full"
        )
    for name in inspect.signature(DiffRhythmTransformer.__init__).parameters:
        assert network.config.get(name) == default.config.get(name), name
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == shapes


def test_every_size_that_shapes_show_is_read_from_them():
    sizes = {
        "dim": 64, "depth": 3, "ff_mult": 2, "latent_channels": 8, "text_num_embeds": 10, "text_dim": 16,
        "style_dim": 12, "cond_dim": 24, "time_frequencies": 10, "conv_layers": 2, "text_ff_mult": 3,
        "text_kernel_size": 5, "conv_pos_kernel_size": 9, "conv_pos_groups": 4,
    }  # fmt: skip
    with torch.device("meta"):
        network = DiffRhythmTransformer(**sizes)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = config_of(RELEASES["v1.0-full"], shapes)
    assert {name: found[name] for name in sizes} == sizes
    assert (found["causal"], found["max_frames"], found["num_attention_heads"]) == (True, 6144, 32)


def test_weights_of_another_kind_keep_the_published_sizes():
    assert config_of(RELEASES["v1.2-base"], {"something.weight": (3,)}) == {
        "causal": False, "max_frames": 2048, "duration_embedding": False, "num_attention_heads": 32,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (FULL, "they look like DiffRhythm v1.2-full"),
        (BASE, "they look like DiffRhythm v1.0 or v1.2-base"),
        (
            {"proj_out.weight": (8, 64), "text_fusion_linears.0.0.weight": (64, 16)},
            "they look like DiffRhythm v1.0 or v1.2-base with dim=64 and depth=0",
        ),
        ({"latent_embed.0.weight": (512, 64)}, "they look like DiffRhythm 2"),
        ({"duration_abs_embed.time_mlp.0.weight": (512, 256)}, "they look like JAM"),
        (
            {"transformer_blocks.0.self_attn.q_proj.lora_A.weight": (4, 64)},
            "they look like a LoRA adapter; give it as adapter=",
        ),
        (
            {"decoder.layers.0.weight_g": (1,)},
            "they look like a VAE of stable-audio-tools; give a VAE as vae=",
        ),
        ({"anything": (1,)}, "they look like no model known here"),
    ],
)
def test_weights_are_called_by_the_model_they_look_like(shapes, words):
    assert looks_like(shapes) == words
