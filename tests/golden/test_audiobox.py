"""Audiobox-Aesthetics, from the sound to the four scores, against numbers of the original."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffdpo.errors import DataError
from tools.parity import audiobox as golden_audiobox

FOLDER = Path(__file__).parent / "audiobox"
CASES = golden_audiobox.audiobox(FOLDER)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layers_predictions_and_scores_equal_the_originals(case):
    assert case.is_covered
    assert case.is_within_tolerance, f"error {case.error:.1e}"


def test_every_step_on_the_way_is_there():
    names = {case.name for case in CASES}
    for axis in ("CE", "CU", "PC", "PQ"):
        assert {f"chunk_pred_normalized.{axis}", f"final.{axis}"} <= names
    assert {"chunk_weights", "chunk_batch_ids", "frame_padding_mask", "layer_results_chunk0_first20"} <= names
    assert len(CASES) == 12


@pytest.fixture
def copy(tmp_path) -> Path:
    return shutil.copytree(FOLDER, tmp_path / "audiobox")


def failed(folder: Path) -> set[str]:
    return {case.name for case in golden_audiobox.audiobox(folder) if not case.is_within_tolerance}


@pytest.mark.parametrize(
    ("name", "noticed"),
    [
        ("wavlm_model.encoder.layers.2.self_attn.grep_a", "layer_results_chunk0_first20"),
        ("wavlm_model.encoder.layers.1.self_attn.grep_linear.weight", "layer_results_chunk0_first20"),
        (
            "wavlm_model.encoder.layers.0.self_attn.relative_attention_bias.weight",
            "layer_results_chunk0_first20",
        ),
        ("wavlm_model.encoder.pos_conv.0.weight_g", "layer_results_chunk0_first20"),
        ("wavlm_model.feature_extractor.conv_layers.0.2.bias", "layer_results_chunk0_first20"),
        ("proj_layer.PQ.4.weight", "chunk_pred_normalized.PQ"),
        ("layer_weights.CE", "chunk_pred_normalized.CE"),
    ],
)
def test_weights_that_are_slightly_off_are_noticed(copy, name, noticed):
    state = load_file(FOLDER / golden_audiobox.WEIGHTS)
    state[name] = 1.1 * state[name]
    save_file(state, copy / golden_audiobox.WEIGHTS)
    assert noticed in failed(copy)


def test_what_is_unknown_is_named_as_not_covered(copy):
    golden = load_file(copy / golden_audiobox.SOUNDS)
    more = {"layer_results_chunk9_first20": torch.zeros(4, 20, 48), "embedding": torch.zeros(3)}
    save_file(golden | more, copy / golden_audiobox.SOUNDS)
    (copy / "more.json").write_text("{}")
    cases = golden_audiobox.audiobox(copy)
    assert {case.name for case in cases if not case.is_covered} == {*more, "more.json"}


def test_a_folder_of_another_kind_is_refused(copy, tmp_path):
    with pytest.raises(DataError, match=r"config\.json"):
        golden_audiobox.audiobox(tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"order_of_wavs": ["z_16k_mono"]}))
    with pytest.raises(DataError, match=r"no sound wav\.z_16k_mono"):
        golden_audiobox.audiobox(copy)
    del config["aes_config"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="lacks aes_config"):
        golden_audiobox.audiobox(copy)
