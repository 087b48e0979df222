"""MuQ and SongEval against numbers of the originals."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffdpo.errors import DataError
from tools.parity import songeval as golden_scorers

HERE = Path(__file__).parent
CASES = [*golden_scorers.muq(HERE / "muq"), *golden_scorers.songeval(HERE / "songeval")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_states_stages_and_scores_equal_the_originals(case):
    assert case.is_covered
    assert case.is_within_tolerance, f"error {case.error:.1e}"


def test_all_stages_are_compared():
    names = {case.name for case in CASES}
    assert {f"tiny_muq_io {key}" for key in ("conv_out", "hidden_0", "hidden_1", "hidden_2")} < names
    assert {"tiny_muq sizes", "tiny_muq, 1 blocks only", "tiny_muq, 2 blocks only"} < names
    stages = ("ffd", "attn", "pooled", "logits", "scores")
    assert {f"tiny_head_io {case}.{stage}" for case in ("t1", "t7", "b3_t50") for stage in stages} < names
    assert len(CASES) == 22


@pytest.mark.parametrize(
    ("kind", "key"),
    [("muq", "conv_out"), ("muq", "hidden_2"), ("songeval", "t7.attn"), ("songeval", "t1.scores")],
)
def test_another_number_is_noticed(tmp_path, kind, key):
    folder = shutil.copytree(HERE / kind, tmp_path / kind)
    (path,) = folder.glob("*_io.safetensors")
    golden = load_file(path)
    golden[key] = golden[key] + 1e-2 * golden[key].abs().max()
    save_file(golden, path)
    failed = [case.name for case in getattr(golden_scorers, kind)(folder) if not case.is_within_tolerance]
    assert f"{path.stem} {key}" in failed
    assert all(key in name or "blocks only" in name for name in failed)


def test_a_config_of_another_size_is_noticed(tmp_path):
    folder = shutil.copytree(HERE / "muq", tmp_path / "muq")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2'))
    assert not golden_scorers.muq(folder)[0].is_within_tolerance


def test_a_head_without_weights_is_made_as_its_config_tells(tmp_path):
    """The recipe in integers: the second number of "input" starts from the first four bytes of its hash."""
    folder = shutil.copytree(HERE / "songeval", tmp_path / "songeval")
    size = {"in_features": 8, "ffd_hidden_size": 4, "attn_layer_num": 1, "num_classes": 5}
    (folder / "config.json").write_text(f'{{"made": {size}}}'.replace("'", '"'))
    head = golden_scorers.hashed_head(size)
    start = 0x5B6D6CC9  # of sha256(b"input"), little-endian
    x = golden_scorers.hashed_tensor("input", (1, 50, 8), 1.0)
    assert x[0, 0, 1].item() == pytest.approx(2 * ((1103515245 + start) % 2**31) / 2**31 - 1)
    with torch.no_grad():
        save_file({"scores": head(x), "x_of_another": x}, folder / "made_head_io.safetensors")
    cases = {case.name: case for case in golden_scorers.songeval(folder)}
    assert cases["made_head_io scores"].is_within_tolerance
    assert not cases["made_head_io x_of_another"].is_covered


@pytest.mark.parametrize("kind", ["muq", "songeval"])
def test_a_folder_without_numbers_is_refused(tmp_path, kind):
    with pytest.raises(DataError, match="cannot be read"):
        getattr(golden_scorers, kind)(tmp_path)
    shutil.copy(HERE / kind / "config.json", tmp_path)
    with pytest.raises(DataError, match="holds no"):
        getattr(golden_scorers, kind)(tmp_path)
