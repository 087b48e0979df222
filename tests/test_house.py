"""Rules of the house that a machine can check."""

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from support.words import FIELD, LISTED, count

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "diffdpo").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").rglob("*.py"))
LINES, FUNCTION_LINES = 320, 70


def relative(path):
    return str(path.relative_to(ROOT))


@cache
def parse(path):
    """The syntax tree of a file, parsed once for all rules."""
    return ast.parse(path.read_text())


@cache
def nodes(path):
    """All nodes of a file."""
    return tuple(ast.walk(parse(path)))


@cache
def classes(path):
    return [node for node in nodes(path) if isinstance(node, ast.ClassDef)]


OURS = {node.name for path in SOURCES for node in classes(path)}
ERRORS = {node.name for node in classes(ROOT / "diffdpo/errors.py")}


@pytest.mark.parametrize("path", SOURCES + TOOLS, ids=relative)
def test_a_file_opens_with_what_it_is_for_and_stays_readable(path):
    tree = parse(path)
    assert ast.get_docstring(tree), "every file opens with a sentence"
    assert len(path.read_text().splitlines()) <= LINES
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_class_inherits_from_one_of_ours(path):
    for node in classes(path):
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        assert not bases & (OURS - ERRORS), f"{node.name}: wrap instead of subclassing"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_text_on_disk_is_utf8_whatever_the_locale(path):
    """Text is read by `diffdpo.text_files`, or with its encoding; lines of JSON lines end at a line feed only."""
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        name, keywords = function.split(".")[-1], {keyword.arg for keyword in node.keywords}
        if name in ("read_text", "write_text") and "." in function and not function.startswith("text_files"):
            assert "encoding" in keywords, ast.unparse(node)
        if name == "open" and function not in ("os.open", "webbrowser.open", "opener.open"):
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            assert "encoding" in keywords or any("b" in str(mode) for mode in modes), ast.unparse(node)
        if function == "OmegaConf.load":
            assert ast.unparse(node.args[0]).startswith("StringIO"), "read_yaml reads YAML"
        if name == "splitlines":
            assert "read_text" not in function, "a text in JSON or YAML may hold U+2028"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_annotations_stay_checkable_at_run_time(path):
    assert "from __future__ import annotations" not in path.read_text()


def test_nothing_is_left_to_do_and_no_machine_is_named():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split("\n"):
        path = ROOT / name
        if path.suffix not in (".py", ".md", ".yaml", ".toml", ".json", ".j2") or path == Path(__file__):
            continue
        text = path.read_text()
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", text), name
        assert not re.search(r"(?<![\w.])/(home|root|work|Users)/\w", text), name


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, diffdpo, diffdpo.cli; assert not {'torch', 'numpy', 'omegaconf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_choosing_a_scorer_imports_nothing_that_computes():
    """The table, and the arguments of every scorer as a configuration would check them."""
    code = """
import sys
from omegaconf import OmegaConf
from diffdpo.scorers import SCORERS
for scorer in SCORERS.values():
    OmegaConf.to_object(OmegaConf.structured(scorer))
heavy = {"librosa", "transformers", "peft", "diffusers", "torchaudio", "scipy", "pyloudnorm", "numba"}
ours = ("diffdpo.encoders", "diffdpo.models", "diffdpo.codecs")
sys.exit(", ".join(sorted({name for name in sys.modules if name in heavy or name.startswith(ours)})) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_tool_finds_what_it_imports():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in TOOLS]
    code = f"import importlib; [importlib.import_module(name) for name in {names}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_configuration_reference_is_fresh():
    done = subprocess.run(
        [sys.executable, "tools/config_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_shipped_weights_name_no_path_of_the_machine_that_made_them():
    configs = sorted((ROOT / "diffdpo" / "assets").rglob("config.json"))
    assert configs
    assert not [path for path in configs if json.loads(path.read_text()).get("_name_or_path")]


def terms_of(path):
    """Files of terms that a module imports, directly or through other terms."""
    imported = {
        ROOT / (node.module.replace(".", "/") + ".py")
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffdpo.objectives.terms.")
    }
    return imported | {file for term in imported for file in terms_of(term)}


def test_the_default_objective_and_its_terms_are_read_in_one_sitting():
    path = ROOT / "diffdpo/objectives/dpo.py"
    lines = {file: len(file.read_text().splitlines()) for file in {path} | terms_of(path)}
    assert len(lines) > 1
    assert lines[path] <= 60
    assert sum(lines.values()) <= 300


def test_names_are_nouns_of_the_field():
    """At most 3 names of 1000 are participles, pronouns or adverbs in the place of a noun."""
    assert len(LISTED) >= 150
    assert len(FIELD.split()) <= 40
    for sources in (SOURCES, TOOLS):
        words, total, places = count(sources)
        assert sum(words.values()) <= 0.003 * total, dict(places)


def test_a_public_name_is_defined_once():
    """At the top level of the package: functions, classes, aliases, constants. A verb has a `run` each."""
    owners = defaultdict(list)
    for path in SOURCES:
        for name in top_level_names(parse(path)):
            if not name.startswith("_") and name not in ("run", "T"):
                owners[name].append(relative(path))
    assert {name: paths for name, paths in owners.items() if len(paths) > 1} == {}


def top_level_names(tree):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id
