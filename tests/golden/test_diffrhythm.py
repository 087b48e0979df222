"""DiffRhythm's network against measurements of the original."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffdpo.errors import DataError
from diffdpo.evaluation import golden

FOLDER = Path(__file__).parent / "diffrhythm"
TOOL = Path(__file__).parents[2] / "tools" / "check_golden.py"


@pytest.fixture(scope="module")
def cases():
    return golden.diffrhythm(FOLDER)


def test_everything_measured_on_the_original_agrees(cases):
    assert [case for case in cases if not case.passed] == []


def test_every_prediction_activation_gradient_and_listing_is_compared(cases):
    covered = [case.name for case in cases if case.covered]
    for name, count in {
        "case1_forward": 11,
        "case1b_legacy_causal": 1,
        "case2_padded_dropflags": 8,
        "case3_scalar_time": 1,
        "case4_train_loss": 15,
        "base_95s": 2,
        "full_285s": 2,
    }.items():
        assert sum(name in case for case in covered) == count, name
    assert all("/sample_" in case.name for case in cases if not case.covered)


def test_bidirectional_is_not_causal():
    """Else the two golden cases would prove one thing twice."""
    both, causal = (
        golden.read_tensors(FOLDER / "tiny_base" / f"{case}.safetensors")[f"out.{key}"]
        for case, key in (("case1_forward", "pred"), ("case1b_legacy_causal", "pred_causal"))
    )
    assert not golden.compare("causal", causal, both).passed


def test_an_error_just_beyond_the_tolerance_fails_and_so_does_a_nan():
    one = torch.ones(3)
    assert golden.compare("within", one + 1.9e-5, one).passed
    assert not golden.compare("beyond", one + torch.tensor([0, 2.2e-5, 0]), one).passed
    assert not golden.compare("nan", one * torch.tensor([1, torch.nan, 1]), one).passed
    assert not golden.compare("shape", one[:2], one).passed


def test_another_models_listing_is_not_covered(tmp_path):
    listing = json.loads((FOLDER / "diffrhythm_base_95s_max2048_state_dict.json").read_text())
    listing["config"]["repa_depth"] = 6
    (tmp_path / "other_state_dict.json").write_text(json.dumps(listing))
    assert [case.covered for case in golden.diffrhythm(tmp_path)] == [False]


def test_a_listing_with_another_shape_is_told_by_its_key(tmp_path):
    listing = json.loads((FOLDER / "diffrhythm_base_95s_max2048_state_dict.json").read_text())
    listing["state_dict"]["transformer.proj_out.bias"] = [65]
    (tmp_path / "base_state_dict.json").write_text(json.dumps(listing))
    keys, parameters = golden.diffrhythm(tmp_path)
    assert not keys.passed
    assert "transformer.proj_out.bias" in keys.name
    assert parameters.passed


def test_a_folder_without_anything_known_is_the_users_mistake(tmp_path):
    with pytest.raises(DataError, match=r"config\.json"):
        golden.diffrhythm(tmp_path)


def test_the_tool_says_one_line_and_exits_with_two_for_a_bad_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, TOOL, "diffrhythm", tmp_path], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
