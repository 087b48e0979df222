"""Adapters for other programs, with a card; and the memory of a training, from the command line."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from support.launch import verb

from diffdpo.models.adapters import read_adapter, save_adapter
from diffdpo.models.diffrhythm.checkpoints import load_network
from diffdpo.training.config import LoraConfig
from diffdpo.training.lora import add_lora

pytestmark = pytest.mark.slow

FILES = {
    "diffusers": "pytorch_lora_weights.safetensors",
    "peft": "adapter_model.safetensors",
    "comfyui": "comfyui.safetensors",
}


@pytest.fixture
def adapter(bundle, tmp_path):
    network = load_network(bundle / "network")
    add_lora(network, LoraConfig(rank=3, alpha=5.0, targets=["q_proj"]), (), seed=0)
    save_adapter(network, network.state_dict(), tmp_path / "export")
    return tmp_path / "export"


@pytest.mark.parametrize("layout", FILES)
def test_every_layout_comes_with_a_card_and_back(bundle, adapter, tmp_path, layout):
    target = tmp_path / "song-lora"
    out = verb(
        "export-adapter", adapter, target, "--layout", layout, "--model", "tiny", "--arg", f"bundle={bundle}",
        "--base", "someone/songs", "--license", "cc-by-4.0", "--data-license", "CC0",
    )  # fmt: skip
    path = target / FILES[layout]
    assert out.strip() == str(path)
    state, _ = read_adapter(adapter)
    again, config = read_adapter(path if layout == "comfyui" else target)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert config["r"] == 3
    card = ModelCard.load(target / "README.md")
    assert (card.data.license, card.data.base_model) == ("cc-by-4.0", "someone/songs")
    assert "* data: CC0" in card.content
    assert {"diffusers": "load_lora_weights", "peft": "PeftModel", "comfyui": "models/loras"}[
        layout
    ] in card.content


def test_the_card_holds_the_table_of_the_evaluation(adapter, tmp_path):
    effect = {"mean": 0.25, "low": 0.1, "high": 0.4}
    axis = {
        "axis": "harmony.key",
        "role": "judge",
        "baseline_mean": 1.0,
        "aligned_mean": 1.25,
        "effect": effect,
    }
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/report.json").write_text(json.dumps({"verdict": "Better.", "axes": [axis]}))
    verb("export-adapter", adapter, tmp_path / "out", "--report", tmp_path / "evaluation")
    text = (tmp_path / "out/README.md").read_text()
    assert "| harmony.key | judge | 1 | 1.25 | +0.25 [+0.1, +0.4] |" in text
    assert "* data: not stated" in text


def test_what_cannot_be_exported_is_one_line(adapter, tmp_path):
    assert "exists; remove it" in verb("export-adapter", adapter, adapter, code=2)
    assert "no adapter here" in verb("export-adapter", tmp_path, tmp_path / "out", code=2)
    (tmp_path / "report.json").write_text("{}")
    error = verb("export-adapter", adapter, tmp_path / "out", "--report", tmp_path, code=2)
    assert "no report of `diffdpo evaluate`" in error


def test_a_training_is_estimated_without_its_weights():
    """A release of 1.1 billion parameters that is not here, with LoRA: the base in fp32 and little else."""
    out = verb("estimate", "diffrhythm/dpo_lora", "train.precision=no", "--seconds", "95")
    values = {line.split()[0]: float(line.split()[1]) for line in out.splitlines()}
    assert list(values) == ["weights", "gradients", "optimizer", "reference", "activations", "peak"]
    assert 4.0 < values["weights"] < 5.0
    assert values["reference"] == 0.0
    assert values["optimizer"] == pytest.approx(2 * values["gradients"], rel=0.02)
    assert values["peak"] > values["weights"] + values["optimizer"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--seconds", "1000"), "takes songs of 95 s at most"),
        (("--zero", "4"), "zero_stage must be in [0, 3], got 4"),
        (("--processes", "3"), "train.global_batch=32 is not a multiple"),
    ],
)
def test_an_estimate_of_what_cannot_be_is_one_line(words, says):
    assert says in verb("estimate", "diffrhythm/dpo_lora", *words, code=2)
