"""The command line as a person meets it: separate processes, exit codes, one-line errors."""

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from diffdpo.cli import app

runner = CliRunner()
VERBS = ("prepare", "sample", "score", "mine", "train", "evaluate", "round", "demo")


def test_help_does_not_import_torch():
    code = (
        "import sys\n"
        "sys.argv = ['diffdpo', '--help']\n"
        "from diffdpo.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'omegaconf' not in sys.modules\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in (*VERBS, "lyrics"))
    assert time.monotonic() - began < 30  # it takes 0.2 s; a torch import on a busy machine would still fit


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    result = runner.invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert "--dry-run" in result.stdout


def test_a_dry_run_prints_the_resolved_configuration_and_does_nothing(tmp_path):
    result = runner.invoke(app, ["train", f"out={tmp_path / 'run'}", "train.steps=3", "--dry-run"])
    assert result.exit_code == 0
    assert "steps: 3" in result.stdout
    assert "global_batch: 8" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "out=x", "trian.steps=3"], "unknown key 'trian'. Did you mean 'train'?"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such configuration"),
        (["train", "out=x", "objective.name=dpoo"], "unknown objective 'dpoo'. Did you mean 'dpo'?"),
        (["train", "out=x", "model.name=tinny"], "unknown model 'tinny'. Did you mean 'tiny'?"),
        (
            ["score", "samples=[x]", "out=y", "scorers=[harmonie]"],
            "unknown scorer 'harmonie'. Did you mean 'harmony'?",
        ),
        (["mine", "samples=[x]", "scores=s", "out=y", "rule.name=best"], "unknown rule 'best'"),
        (["sample", "out=x"], "no value for prompts"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(words, says):
    result = runner.invoke(app, words)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert says in lines[0]


def test_lyrics_are_checked(tmp_path):
    path = tmp_path / "song.lrc"
    path.write_text("[ti:Name]\n[00:12.50]first line\nno time here\n[00:99.00]too late\n")
    result = runner.invoke(app, ["lyrics", "check", str(path), "--duration", "60"])
    assert result.exit_code == 0
    assert "12.50  first line" in result.stdout
    path.write_text("words without times")
    assert runner.invoke(app, ["lyrics", "check", str(path)]).exit_code == 2
