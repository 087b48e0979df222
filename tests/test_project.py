"""The files around the package: what a wheel holds, and that statements about the project agree with each other."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import diffdpo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_SHIPPED = {"tests", "tools", "docs", "configs", ".github"}


def files(folder: str, *patterns: str) -> set[str]:
    """Paths of the files in a folder of the repository, relative to it, without what git ignores."""
    paths = [f"{folder}/{pattern}" for pattern in patterns or ("*",)]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = {name for name in done.stdout.split("\0") if (ROOT / name).is_file()}
    return {name.removeprefix(f"{folder}/") for name in names}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_the_wheel_holds_the_whole_package(wheel: set[str]) -> None:
    package = files("diffdpo")
    assert "py.typed" in package
    assert any(name.startswith("assets/") for name in package)
    assert any(name.endswith(".j2") for name in package)
    assert {f"diffdpo/{name}" for name in package} <= wheel


def test_the_wheel_holds_the_presets_and_the_files_they_name(wheel: set[str]) -> None:
    presets = {name.removeprefix("diffdpo/presets/") for name in wheel if name.startswith("diffdpo/presets/")}
    assert presets == files("configs")
    assert {"tiny/demo.yaml", "tiny/prompts_mining.jsonl", "deepspeed/zero2.json"} <= presets


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    outside = {name for name in wheel if not name.startswith("diffdpo/")}
    assert all(name.split("/")[0].endswith(".dist-info") for name in outside), sorted(outside)
    assert {name.rsplit("/", 1)[-1] for name in outside} >= {"LICENSE", "NOTICE", "entry_points.txt"}
    inside = {name.split("/")[1] for name in wheel if name.startswith("diffdpo/")}
    assert not inside & NOT_SHIPPED


def test_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == diffdpo.__version__
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert diffdpo.__version__ in sections


def test_the_citation_has_the_fields_of_its_schema() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert set(citation) >= {"message", "title", "authors", "type"}
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])


def test_hosted_tests_run_on_the_versions_that_are_promised() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    promised = {c.rsplit(" ", 1)[-1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert set(jobs["test"]["strategy"]["matrix"]["python"]) == promised
    assert PROJECT["requires-python"] == f">={min(promised, key=lambda version: int(version[2:]))}"
    commands = {step.get("run") for job in jobs.values() for step in job["steps"]}
    assert {"make test", "make docs"} <= commands


def test_hooks_need_no_network() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["language"] for hook in repos[0]["hooks"]} == {"system"}
    assert {hook["id"] for hook in repos[0]["hooks"]} == {"ruff", "ruff-format", "mypy", "import-linter"}


def test_weights_cannot_run_code() -> None:
    """What SECURITY.md says: pickles through `weights_only` alone, one TorchScript archive, no remote code."""
    for name in files("diffdpo", "*.py"):
        text = (ROOT / "diffdpo" / name).read_text()
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, f"{name}: {call}"
        unsafe = re.search(
            r"pickle\.loads?\(|allow_pickle=True|trust_remote_code|(?<!\.)\b(eval|exec)\(", text
        )
        assert unsafe is None, f"{name}: {unsafe}"
        assert "torch.jit.load(" not in text or name == "codecs/oobleck.py", name
