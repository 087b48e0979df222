"""The command line as a person meets it: separate processes, exit codes, one-line errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from diffdpo.cli import app, one_line_errors
from diffdpo.errors import NotPassedError, UserError

runner = CliRunner()
VERBS = ("prepare", "sample", "score", "mine", "train", "evaluate", "audit", "round", "demo")


def test_help_does_not_import_torch():
    code = (
        "import sys\n"
        "sys.argv = ['diffdpo', '--help']\n"
        "from diffdpo.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'omegaconf' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands = (
        "lyrics",
        "presets",
        "song",
        "convert",
        "import-ratings",
        "perturb",
        "gpu-check",
        "estimate",
        "export-adapter",
        "power",
    )
    assert all(verb in done.stdout for verb in (*VERBS, *commands))


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
        (
            ["train", "tiny/dpo"],
            "runs/tiny/pairs: no such folder; make it first with `diffdpo mine tiny/mine`",
        ),
        (
            ["mine", "tiny/mine"],
            "runs/tiny/samples: no such folder; make it first with `diffdpo sample tiny/sample`",
        ),
        (["score", "tiny/score"], "make it first with `diffdpo sample tiny/sample`"),
        (["train", "tiny/mine"], "tiny/mine is a preset of `diffdpo mine`"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, words)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert says in lines[0]


def test_presets_are_listed_found_and_copied(tmp_path):
    listed = runner.invoke(app, ["presets"])
    assert listed.exit_code == 0
    assert "diffdpo train tiny/dpo" in listed.stdout
    path = runner.invoke(app, ["presets", "accelerate/gpu_8_zero2"])
    assert Path(path.stdout.strip()).is_file()
    copied = runner.invoke(app, ["presets", "--export", str(tmp_path / "mine")])
    assert copied.exit_code == 0
    assert (tmp_path / "mine" / "tiny" / "train_dpo.yaml").is_file()
    again = runner.invoke(app, ["presets", "--export", str(tmp_path / "mine")])
    assert again.exit_code == 2
    assert "exists; choose another folder" in again.stderr


def test_lyrics_are_checked(tmp_path):
    path = tmp_path / "song.lrc"
    path.write_text("[ti:Name]\n[00:12.50]first line\nno time here\n[00:99.00]too late\n")
    result = runner.invoke(app, ["lyrics", "check", str(path), "--duration", "60"])
    assert result.exit_code == 0
    assert "12.50  first line" in result.stdout
    path.write_text("words without times")
    assert runner.invoke(app, ["lyrics", "check", str(path)]).exit_code == 2


def test_a_verdict_that_is_not_passed_ends_with_code_one(capsys):
    for error, code in ((NotPassedError("over-optimised"), 1), (UserError("a mistake"), 2)):
        with pytest.raises(typer.Exit) as exit_info, one_line_errors():
            raise error
        assert exit_info.value.exit_code == code
    assert capsys.readouterr().err == "error: over-optimised\nerror: a mistake\n"


def test_the_end_of_a_file_is_no_abort():
    """The command line's library turns EOFError, which torch raises for an empty file, into the word "Aborted!"."""
    with pytest.raises(RuntimeError, match="ended too early"), one_line_errors():
        raise EOFError


def test_an_error_line_has_no_terminal_escapes(capsys):
    with pytest.raises(typer.Exit), one_line_errors():
        raise UserError("\x1b[1mbold\x1b[0m\n and\a é")
    assert capsys.readouterr().err == "error: bold and é\n"
