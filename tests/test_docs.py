"""Documentation that can be run is run, and what cannot is at least parsed."""

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from diffdpo import config, parts
from diffdpo.cli import VERBS, app
from diffdpo.objectives import OBJECTIVES
from diffdpo.recipes.mine import MineRun
from diffdpo.registry import Choice

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
PLACEHOLDERS = {"CONFIG": "configs/tiny/train_dpo.yaml", "FOLDER": "songs"}


def blocks(language):
    return [
        (page, text) for page in PAGES for name, text in BLOCK.findall(page.read_text()) if name == language
    ]


def commands():
    for page, text in blocks("bash"):
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                yield pytest.param(page, line.split("  #")[0], id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text())):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_look_the_same_in_the_repository_and_on_the_site(page):
    """Content of a list item is indented by four: with less, the list ends there for the Markdown of the site."""
    text = BLOCK.sub("", page.read_text())
    nested = r"^ {1,3}(?:[*-] |\d+\. |\|)|\n\n {1,3}\S"
    assert not re.search(nested, text, re.MULTILINE), re.search(nested, text, re.MULTILINE)


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_commands_name_things_that_exist(page, line, tmp_path):
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]
    words = [word for word in words if not re.fullmatch(r"[A-Z][A-Z0-9_]+=\w+", word)]  # environment
    if words[0] == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    for word in words:
        if word.startswith(("configs/", "tools/", "docs/")):
            assert (ROOT / word).exists(), word
    if "--config_file" in words:
        assert "num_processes" in OmegaConf.load(ROOT / words[words.index("--config_file") + 1])
    if "diffdpo" in words:
        verb, *rest = words[words.index("diffdpo") + 1 :]
        if verb not in VERBS:  # a command of its own: at least it exists
            assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0
            return
        rest = [word.replace("=FOLDER", "=songs") for word in rest]
        result = CliRunner().invoke(app, [verb, *rest, "--dry-run"])
        assert result.exit_code == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({page for page, _ in blocks("python")}), ids=lambda page: page.name)
def test_python_examples_run(page, tmp_path, monkeypatch):
    """One after the other, as a reader would; and the tests among them pass."""
    monkeypatch.chdir(tmp_path)
    space: dict = {"__name__": "example"}
    for text in (text for where, text in blocks("python") if where == page):
        exec(compile(text, str(page), "exec"), space)
    for name in [name for name in space if name.startswith("test_")]:
        space[name]()


def test_the_objective_of_the_how_to_trains(monkeypatch):
    text, _ = [text for page, text in blocks("python") if page.name == "add-an-objective.md"]
    space: dict = {"__name__": "example"}
    exec(compile(text, "add-an-objective.md", "exec"), space)
    monkeypatch.setitem(OBJECTIVES.entries, "hinge_dpo", space["HingeDPO"])
    built = parts.build_objective(Choice("hinge_dpo", {"beta": 500}))
    assert built.beta == 500.0


@pytest.mark.parametrize("text", [text for page, text in blocks("yaml") if page.name == "mining.md"])
def test_mining_examples_load(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    named = OmegaConf.load(tmp_path / "mine.yaml")
    missing = [f"{key}=x" for key in ("scores", "out") if key not in named]
    missing += [] if "samples" in named else ["samples=[x]"]
    config.build_config(MineRun, tmp_path / "mine.yaml", missing).check_parts()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
