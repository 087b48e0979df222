"""Writes docs/reference/config.md from the dataclasses of the configuration and the docstrings of their fields.

    python tools/config_reference.py [--check]

With --check the page is compared with the dataclasses, and exit code 1 says that it is stale. The verbs come from
the list of the command line, and the parts that are chosen by name from every `Table` of the packages in PACKAGES,
so that a new verb, part or term of an objective needs no line in this file.
"""

import argparse
import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.cli import VERBS
from diffdpo.presets import DEFAULTS
from diffdpo.registry import Choice, Table
from diffdpo.sampling.solver import Solver

PAGE = ROOT / "docs" / "reference" / "config.md"
PACKAGES = ("extractors", "mining", "models", "objectives", "sampling.config", "scorers")
REQUIRED_MARK = "???"
TITLES = {
    "objective": "Objectives", "link": "Links", "rule": "Mining rules", "utility": "Utilities",
    "model": "Models", "solver": "Solvers", "guider": "Guiders", "scorer": "Scorers",
}  # fmt: skip
"""The heading of each kind of part, in the order of the page; other kinds follow."""
KINDS = {"guidance": "guider"}
"""The kind of part by the configuration key, for keys that differ from their kind."""
HEAD = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]


def verb_schemas() -> dict[str, type]:
    """The dataclass of each verb's configuration."""
    return {
        verb: getattr(import_module(f"diffdpo.recipes.{verb}"), name) for verb, (name, _) in VERBS.items()
    }


def part_tables() -> dict[str, Table[Any]]:
    """All tables of parts, by kind."""
    for package in PACKAGES:
        import_module(f"diffdpo.{package}")
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("diffdpo.")]
    tables = {v.kind: v for module in modules for v in vars(module).values() if isinstance(v, Table)}
    return {kind: tables[kind] for kind in dict.fromkeys([*TITLES, *sorted(tables)]) if kind in tables}


def heading(kind: str) -> str:
    """The heading of a kind of part."""
    return TITLES.get(kind, f"{kind.capitalize()}s")


def link_to(title: str) -> str:
    """A link to a heading of the page."""
    return f"[{title}](#{title.lower().replace(' ', '-')})"


def field_docstrings(schema: type) -> dict[str, str]:
    """By field, the docstring under the field in the source of a dataclass."""
    body = ast.parse(inspect.getsource(schema)).body[0].body  # type: ignore[attr-defined]
    return {
        node.target.id: " ".join(str(text_node.value.value).split())  # type: ignore[union-attr]
        for node, text_node in pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(text_node, ast.Expr)
        and isinstance(text_node.value, ast.Constant)
    }


def first_paragraph(value: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; the one type otherwise."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def type_name(hint: Any) -> str:
    """A type as users write it: without module names, a union in words."""
    parts = [part for part in alternatives(hint) if part is not NoneType]
    names = [
        part.__name__
        if isinstance(part, type) and not get_args(part)
        else str(part).replace("typing.", "").replace("diffdpo.", "")
        for part in parts
    ]
    text = " or ".join(f"`{name}`" for name in names)
    return f"{text}, optional" if NoneType in alternatives(hint) else text


def default_of(field: Field[Any]) -> Any:
    """The default of a field; `REQUIRED` where there is none."""
    if field.default is not MISSING:
        return field.default
    return REQUIRED_MARK if field.default_factory is MISSING else field.default_factory()


def default_text(value: Any) -> str:
    """The default in the table; empty for a nested dataclass, whose fields have rows of their own."""
    if isinstance(value, Choice):
        return f"`{value.name}`" if not value.args else f"`{value.name}` with `{value.args}`"
    if is_dataclass(value):
        return ""
    return "required" if value == REQUIRED_MARK else f"`{value!r}`"


def changed_defaults(value: Any) -> str:
    """The keys and defaults of a nested configuration that differ from the defaults of its dataclass."""
    usual_values = {field.name: default_of(field) for field in fields(value)}
    changes = {
        name: getattr(value, name)
        for name, default in usual_values.items()
        if default != REQUIRED_MARK and getattr(value, name) != default
    }
    return ", ".join(f"{name}: {default_text(v)}" for name, v in changes.items())


def table_row(key: str, *cells: str) -> str:
    """A row of a table, in Markdown."""
    cells = (f"`{key}`", *(cell.replace("|", r"\|") for cell in cells))
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def key_rows(
    schema: type, verbs: Mapping[type, str], kinds: Mapping[str, Any], value: Any = None, prefix: str = ""
) -> Iterator[str]:
    """The row of each key of a dataclass. Keys of a nested dataclass follow, with their defaults in this place.

    A nested dataclass that is the configuration of a verb is a link to that verb.
    """
    hints, docs = get_type_hints(schema), field_docstrings(schema)
    for field in fields(schema):
        if field.name.startswith("_") or not field.init:
            continue
        hint = hints[field.name]
        default = default_of(field) if value is None else getattr(value, field.name)
        nested_schema = next((h for h in alternatives(hint) if is_dataclass(h) and isinstance(h, type)), None)
        optional = ", optional" if NoneType in alternatives(hint) else ""
        key, description = f"{prefix}{field.name}", docs.get(field.name, "")
        if nested_schema is None:
            yield table_row(key, type_name(hint), default_text(default), description)
        elif nested_schema is Choice:
            kind = KINDS.get(field.name, field.name)
            parts = f": {link_to(heading(kind))}" if kind in kinds else ""
            yield table_row(key, f"name and args{parts}{optional}", default_text(default), description)
        elif nested_schema in verbs:
            yield table_row(
                key,
                f"keys of {link_to(verbs[nested_schema])}{optional}",
                changed_defaults(default),
                description,
            )
        else:
            description = description or first_paragraph(nested_schema)
            yield table_row(key, optional.removeprefix(", "), default_text(default), description)
            yield from key_rows(nested_schema, verbs, kinds, default, f"{key}.")


def part_section(name: str, schema: type, verbs: Mapping[type, str], kinds: Mapping[str, Any]) -> list[str]:
    """The section of a part that is a dataclass: the first paragraph of its docstring, and its arguments."""
    body = list(key_rows(schema, verbs, kinds))
    return [f"### {name}", "", first_paragraph(schema), "", *([*HEAD, *body, ""] if body else [])]


def function_row(name: str, entry: Any) -> str:
    """The row of a part that is a function: its keyword-only parameters and the start of its docstring."""
    function = entry.step if isinstance(entry, Solver) else entry
    arguments = [
        f"`{p.name}: {type_name(p.annotation).strip('`')} = {p.default}`"
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    description = first_paragraph(function.func if isinstance(function, partial) else function)
    if isinstance(entry, Solver):
        exact = "exact" if entry.exact else "not exact"
        description = f"{description} {f'Stochastic, {exact}' if entry.stochastic else 'Deterministic'}."
    return table_row(name, ", ".join(arguments), description)


def table_section(
    kind: str, table: Table[Any], verbs: Mapping[type, str], kinds: Mapping[str, Any]
) -> list[str]:
    """All parts of a kind: dataclasses in sections of their own, functions in one table."""
    lines = [f"## {heading(kind)}", ""]
    schemas = {
        name: entry
        for name, entry in table.entries.items()
        if is_dataclass(entry) and isinstance(entry, type)
    }
    for name, schema in schemas.items():
        lines += part_section(name, schema, verbs, kinds)
    functions = {name: entry for name, entry in table.entries.items() if name not in schemas}
    if functions:
        lines += ["| name | arguments | meaning |", "| --- | --- | --- |"]
        lines += [*(function_row(name, entry) for name, entry in functions.items()), ""]
    return lines


def config_page() -> str:
    """The text of the page."""
    schemas = verb_schemas()
    verbs = {schema: verb for verb, schema in reversed(schemas.items())}
    tables = part_tables()
    lines = [
        "# Configuration reference",
        "",
        "Generated by `make docs` from the dataclasses; do not edit. A part that is chosen by name is given as its",
        "bare name, or as `{name: …, args: {…}}`; the arguments of all parts stand behind the verbs.",
        "",
    ]
    for verb, schema in schemas.items():
        lines += [f"## {verb}", "", " ".join((inspect.getdoc(schema) or "").split()), ""]
        if verb in DEFAULTS:
            lines += [f"Without a configuration: the preset `{DEFAULTS[verb]}`.", ""]
        if verbs[schema] != verb:
            lines += [f"Keys: those of {link_to(verbs[schema])}.", ""]
        else:
            lines += [*HEAD, *key_rows(schema, verbs, tables), ""]
    for kind, table in tables.items():
        lines += table_section(kind, table, verbs, tables)
    return "\n".join(lines).rstrip() + "\n"


def write_or_check(page: Path, text: str, check: bool) -> int:
    """Write a generated page, or with `check` only compare it: 1 if the page on disk is stale, else 0."""
    if check:
        stale = not page.is_file() or page.read_text() != text
        print(f"{page.relative_to(ROOT)} is {'stale: run make docs' if stale else 'fresh'}")
        return int(stale)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    return write_or_check(PAGE, config_page(), parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
