"""The memory that a preset's comment promises is the memory that `diffdpo estimate` prints for it."""

import re
from pathlib import Path

import pytest
from support.launch import verb

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(path for path in CONFIGS.glob("*/*.yaml") if "# Estimate: peak" in path.read_text())


def test_there_are_presets_with_an_estimate():
    assert {path.stem for path in PRESETS} >= {
        "train_lora_8gb",
        "train_lora_12gb",
        "train_lora_24gb",
        "train_full_8gpu",
    }


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_needs_what_its_comment_says(path):
    text = path.read_text()
    command = re.search(r"#   diffdpo (estimate .*)", text)[1].split()
    peak = re.search(r"peak\s+([\d.]+) GiB", verb(*command))[1]
    assert float(peak) == pytest.approx(float(re.search(r"Estimate: peak ([\d.]+) GiB", text)[1]), rel=0.01)
