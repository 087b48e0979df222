"""What a command imports before it works: nothing that computes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

LIGHT = """
import sys
import diffdpo, diffdpo.cli
from typer.testing import CliRunner

assert not {"torch", "numpy", "omegaconf"} & set(sys.modules)
for words in (["--help"], ["--version"], ["presets"], ["mine", "--help"]):
    answer = CliRunner().invoke(diffdpo.cli.app, words)
    assert answer.exit_code == 0, answer.output
    assert "torch" not in sys.modules, words
"""

DRY_RUNS = """
import sys
from typer.testing import CliRunner
from diffdpo.cli import app
from diffdpo.recipes.mine import MineRun

HEAVY = {"transformers", "peft", "librosa", "accelerate", "deepspeed", "torchaudio", "scipy", "diffusers.models"}
COMPUTE = ("diffdpo.encoders.", "diffdpo.codecs.", "diffdpo.models.diffrhythm.network")

def check(names, verbs):
    for verb, *words in verbs:
        answer = CliRunner().invoke(app, [verb, *words, "--dry-run"])
        assert answer.exit_code == 0, answer.output
        surplus = {name for name in sys.modules if name in HEAVY or name.startswith(names)}
        assert not surplus, (verb, sorted(surplus))

check(("diffdpo.models", *COMPUTE), [
    ("mine", "samples=[a]", "scores=b", "out=c"), ("score", "samples=[a]", "out=c"),
    ("evaluate", "baseline=a", "aligned=b", "scores=c", "out=d"),
])
check(COMPUTE, [
    ("prepare", "songs=a", "out=b"), ("sample", "tiny/sample"), ("train", "tiny/dpo"), ("round", "tiny/demo"),
    ("demo",), ("listen", "tiny/listen"),
])
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_help_version_and_presets_need_no_torch():
    run(LIGHT)


def test_a_dry_run_imports_nothing_that_computes():
    """One process for all: what an earlier verb imports would be there for the later ones."""
    run(DRY_RUNS)
