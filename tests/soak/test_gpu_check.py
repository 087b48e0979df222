"""All parts of the check of a GPU, on the CPU with tiny networks, the compiled one among them."""

import json

import pytest
from support.launch import verb

from diffdpo.recipes.gpu_check import CHECK_PARTS


def test_all_parts_run(tmp_path):
    verb("gpu-check", "--device", "cpu", "--small", "--minutes", 60, "--out", tmp_path)
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    names = [row["name"] for row in parts]
    assert names == ["CPU", *(part.name for part in CHECK_PARTS if part.name != "device")]
    assert {row["name"]: row.get("reason") for row in parts if row["status"] != "ok"} == {}
    rows = {row["name"]: row for row in parts}
    assert 0 < rows["numbers bf16"]["gradient_difference"] < 0.3
    assert rows["sampler"]["rtf"] == pytest.approx(rows["sampler"]["seconds"] / rows["sampler"]["song_s"])
    assert all(row["rtf"] > 0 for name, row in rows.items() if name.startswith("scorer"))
