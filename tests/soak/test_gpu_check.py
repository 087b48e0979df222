"""All parts of the check of a GPU, on the CPU with tiny networks, the compiled one among them."""

import json

from support.launch import verb

from diffdpo.recipes.gpu_check import CHECK_PARTS


def test_all_parts_run(tmp_path):
    verb("gpu-check", "--device", "cpu", "--small", "--minutes", 60, "--out", tmp_path)
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert [row["name"] for row in rows] == [part.name for part in CHECK_PARTS]
    assert {row["name"]: row.get("reason") for row in rows if row["status"] != "ok"} == {}
