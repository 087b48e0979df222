"""DiffRhythm's network against measurements of the original."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffdpo.errors import DataError
from tools.parity import diffrhythm as golden
from tools.parity import diffrhythm_runs as runs

FOLDER = Path(__file__).parent / "diffrhythm"
TOOL = Path(__file__).parents[2] / "tools" / "check_golden.py"


@pytest.fixture(scope="module")
def cases():
    return golden.diffrhythm(FOLDER)


def test_everything_measured_on_the_original_agrees(cases):
    assert [case for case in cases if not case.is_within_tolerance] == []


def test_every_prediction_activation_gradient_and_listing_is_compared(cases):
    covered = [case.name for case in cases if case.is_covered]
    for name, count in {
        "case1_forward": 11,
        "case1b_legacy_causal": 1,
        "case2_padded_dropflags": 8,
        "case3_scalar_time": 1,
        "case4_train_loss": 15,
        "sample_": 8,
        "base_95s": 2,
        "full_285s": 2,
    }.items():
        assert sum(name in case for case in covered) == count, name
    assert all(case.is_covered for case in cases)


def test_bidirectional_is_not_causal():
    """Else the two golden cases would prove one thing twice."""
    both, causal = (
        golden.read_tensors(FOLDER / "tiny_base" / f"{case}.safetensors")[f"out.{key}"]
        for case, key in (("case1_forward", "pred"), ("case1b_legacy_causal", "pred_causal"))
    )
    assert not golden.compare("causal", causal, both).is_within_tolerance


def test_an_error_just_beyond_the_tolerance_fails_and_so_does_a_nan():
    one = torch.ones(3)
    assert golden.compare("within", one + 1.9e-5, one).is_within_tolerance
    assert not golden.compare("beyond", one + torch.tensor([0, 2.2e-5, 0]), one).is_within_tolerance
    assert not golden.compare("nan", one * torch.tensor([1, torch.nan, 1]), one).is_within_tolerance
    assert not golden.compare("shape", one[:2], one).is_within_tolerance


@pytest.fixture(scope="module")
def with_duration(tmp_path_factory):
    """Sizes of its own and the duration embedding of v1.2-full, measured on this project's network."""
    folder = tmp_path_factory.mktemp("golden") / "tiny_full"
    folder.mkdir()
    arguments = {
        "dim": 128, "depth": 3, "heads": 2, "ff_mult": 2, "text_dim": 16, "conv_layers": 2, "mel_dim": 4,
        "text_num_embeds": 9, "max_frames": 6144,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"dit_kwargs": arguments}))
    torch.manual_seed(0)
    network = golden.build_network(folder, golden.network_config(arguments))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = {f"transformer.{name}": tensor for name, tensor in network.state_dict().items()}
    save_file(state, folder / "state_dict.safetensors")
    case = {
        "in.x": torch.randn(2, 12, 4), "in.cond": torch.randn(2, 12, 4), "in.time": torch.rand(2),
        "in.text": torch.arange(24).view(2, 12) % 10, "in.style_prompt": torch.randn(2, 512),
        "in.start_time": torch.rand(2), "in.duration": torch.rand(2),
    }  # fmt: skip
    seen = runs.run_forward(lambda causal: network, case)
    wanted = {key: seen[key] for key in ("out.pred", "act.duration_time_embed")}
    save_file(case | wanted, folder / "case1_forward.safetensors")
    sampling = {
        "in.y0_noise": torch.randn(2, 12, 4), "in.cond": torch.randn(1, 12, 4), "in.text": case["in.text"][:1],
        "in.style_prompt": torch.randn(1, 512), "in.negative_style_prompt": torch.randn(1, 512),
        "in.start_time": torch.zeros(1), "in.song_duration": torch.rand(1), "in.cfg_strength": torch.tensor([4.0]),
        "in.latent_pred_segments": torch.tensor([[3, 8]]), "t_grid": torch.linspace(0, 1, 4),
    }  # fmt: skip
    made = runs.run_sample(lambda causal: network, sampling)
    save_file(sampling | made, folder / "sample_edit.safetensors")
    return folder


def test_a_network_with_other_sizes_and_a_duration_is_compared_too(with_duration):
    for folder in (with_duration, with_duration.parent):
        cases = golden.diffrhythm(folder)
        assert [case.is_within_tolerance and case.is_covered for case in cases] == [True] * 5


@pytest.mark.parametrize(
    ("case", "key"), [("case1_forward", "in.duration"), ("sample_edit", "in.song_duration")]
)
def test_another_duration_would_be_noticed(with_duration, tmp_path, case, key):
    shutil.copytree(with_duration, tmp_path / "other")
    path = tmp_path / "other" / f"{case}.safetensors"
    tensors = load_file(path)
    save_file(tensors | {key: tensors[key] / 2}, path)
    failed = [found.name for found in golden.diffrhythm(tmp_path / "other") if not found.is_within_tolerance]
    assert failed
    assert all(case in name for name in failed)


def test_another_models_listing_is_not_covered(tmp_path):
    listing = json.loads((FOLDER / "diffrhythm_base_95s_max2048_state_dict.json").read_text())
    listing["config"]["repa_depth"] = 6
    (tmp_path / "other_state_dict.json").write_text(json.dumps(listing))
    assert [case.is_covered for case in golden.diffrhythm(tmp_path)] == [False]


def test_a_listing_with_another_shape_is_told_by_its_key(tmp_path):
    listing = json.loads((FOLDER / "diffrhythm_base_95s_max2048_state_dict.json").read_text())
    listing["state_dict"]["transformer.proj_out.bias"] = [65]
    (tmp_path / "base_state_dict.json").write_text(json.dumps(listing))
    keys, parameters = golden.diffrhythm(tmp_path)
    assert not keys.is_within_tolerance
    assert "transformer.proj_out.bias" in keys.name
    assert parameters.is_within_tolerance


def test_a_folder_without_anything_known_is_the_users_mistake(tmp_path):
    with pytest.raises(DataError, match=r"config\.json"):
        golden.diffrhythm(tmp_path)


@pytest.mark.slow
def test_the_tool_says_one_line_and_exits_with_two_for_a_bad_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, TOOL, "diffrhythm", tmp_path], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
