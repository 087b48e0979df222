"""Configurations: one dataclass a verb, filled from a preset or a YAML file and `key=value` words; strict.

An unknown key, or a missing value or one of the wrong type, is a ConfigError with its place and a suggestion. The
arguments of a part that is chosen by name are the fields of its dataclass, checked in the same way.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import OmegaConf, read_write
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException

from diffdpo import presets
from diffdpo.config_fields import Fitter
from diffdpo.errors import ConfigError, DataError
from diffdpo.registry import Choice, Table, pick
from diffdpo.text_files import printable, read_text
from diffdpo.yaml_text import parse_word, parse_yaml

T = TypeVar("T")
COMMAND_LINE = "command line"


def build_config(schema: type[T], source: str | Path | None, words: Sequence[str] = (), verb: str = "") -> T:
    """The configuration of a verb: defaults, then a preset or a YAML file, then `key=value` words."""
    path = presets.find_preset(verb, str(source)) if source is not None else presets.default(verb)
    layers: list[tuple[str, Any]] = []
    if path is not None:
        layers.append((presets.title(path), read_yaml(path)))
    part_keys = {f"{key}{end}" for key in _choice_keys(schema) for end in ("", ".name")}
    for word in words:
        if printable(word) != word:
            raise ConfigError(f"command line: {printable(word)}: not UTF-8; rename the file, or link to it")
    for word in sorted(words, key=lambda word: word.partition("=")[0] not in part_keys):  # then arguments
        layers.append((COMMAND_LINE, _word_tree(word)))
    cfg: Any = OmegaConf.structured(schema)
    named_keys: set[str] = set()
    for location, tree in layers:
        values = Fitter(schema, location, cfg).fit(tree)
        if location != COMMAND_LINE and path is not None:
            values = _resolve_files(schema, values, path.parent)
        layer = _container(values, location)
        cfg = merge(_without_foreign_args(schema, cfg, layer, named_keys), layer, location)
    try:
        return to_object(schema, cfg, "")
    except ConfigError as error:
        file = presets.title(path) if path else COMMAND_LINE
        place = COMMAND_LINE if _is_of_words(str(error), words) else file
        raise ConfigError(f"{place}: {error}") from None


def _is_of_words(message: str, words: Sequence[str]) -> bool:
    """Whether the key that a message begins with is one that words set: then the file is not to blame."""
    fault = message.split(maxsplit=1)[0].rstrip(":").split("[")[0]
    keys = [word.partition("=")[0] for word in words]
    return any(f".{fault}." in f".{key}." or fault.startswith(f"{key.rsplit('.', 1)[-1]}.") for key in keys)


def _word_tree(word: str) -> Any:
    """A word of the command line as a tree."""
    keys, value = parse_word(word)
    tree: Any = value
    for key in reversed(keys):
        tree = {key: tree}
    return tree


def read_yaml(path: Path) -> Any:
    """The mapping in a YAML file; ConfigError for a file without valid YAML, or without a mapping."""
    try:
        content = parse_yaml(read_text(path), str(path))
    except DataError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "one value"
        raise ConfigError(f"{path}: expected keys and values, got {kind}")
    return content


def _container(values: Any, location: str) -> Any:
    try:
        return OmegaConf.create(values)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{location}: {_message(error)}") from None


def merge(base: Any, layer: Any, location: str) -> Any:
    """A layer, already fitted to its schema, merged over others."""
    try:
        return OmegaConf.merge(base, layer)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{location}: {_message(error)}") from None


def to_object(schema: type[T], cfg: Any, location: str) -> T:
    """The configuration as its dataclass. ConfigError for a value that is missing or refused."""
    place = f"{location}: " if location else ""
    try:
        missing_keys = sorted(OmegaConf.missing_keys(cfg))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{place}{_message(error)}") from None
    if missing_keys:
        raise ConfigError(f"{place}no value for {', '.join(missing_keys)}; add {missing_keys[0]}=…")
    try:
        return OmegaConf.to_object(cfg)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{place}{_message(error)}") from None
    except (ValueError, TypeError) as error:  # a dataclass refused its own arguments
        raise ConfigError(f"{place}{error}") from None


def _message(error: OmegaConfBaseException) -> str:
    """An error of OmegaConf in one line, after the key that caused it."""
    key = f"{error.full_key}: " if error.full_key else ""
    if isinstance(error, InterpolationResolutionError | GrammarParseError):
        return f"{key}a reference ${{…}} that cannot be resolved; name a key of this configuration, or write it out"
    return f"{key}{(error.msg or str(error)).splitlines()[0]}"


def to_yaml(cfg: Any) -> str:
    """A configuration as YAML, with every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def _resolve_files(schema: type, values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Values with the paths of data files beside the preset, at any depth; other files are relative to the working
    directory."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        value = values.get(field.name)
        if isinstance(value, dict):
            for inner in (hints[field.name], *get_args(hints[field.name])):
                if is_dataclass(inner) and isinstance(inner, type) and inner is not Choice:
                    values[field.name] = _resolve_files(inner, value, folder)
        if field.metadata.get("input_file") and isinstance(value, str) and (folder / value).is_file():
            values[field.name] = str(folder / value)
    return values


def _choice_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """The keys under which a part is chosen by name, at any depth."""
    for name, hint in get_type_hints(schema).items():
        for inner in (hint, *get_args(hint)):
            if inner is Choice:
                yield f"{prefix}{name}"
            elif is_dataclass(inner) and isinstance(inner, type):
                yield from _choice_keys(inner, f"{prefix}{name}.")


def _without_foreign_args(schema: type, base: Any, layer: Any, named_keys: set[str]) -> Any:
    """The layers below a layer, without the arguments of parts that the layer replaces by other parts.

    The first layer that names a part replaces the default part with its arguments. `named_keys` collects the keys
    that a layer has named so far.
    """
    for key in _choice_keys(schema):
        name = OmegaConf.select(layer, f"{key}.name", throw_on_missing=False)
        if name is not None:
            current = OmegaConf.select(base, f"{key}.name")
            if current is not None and (name != current or key not in named_keys):
                parent = OmegaConf.select(base, key.rpartition(".")[0]) if "." in key else base
                with read_write(parent):  # the nodes of frozen dataclasses are read-only
                    parent[key.rpartition(".")[2]] = Choice(name)
            named_keys.add(key)
    return base


def build_part(table: Table[Any], choice: Choice) -> Any:
    """The part of a table that is chosen: an instance of its dataclass, the arguments checked."""
    schema = pick(table.kind, table, choice.name)
    location = f"{table.kind} {choice.name!r}"
    values = Fitter(schema, location).fit(dict(choice.args))
    return to_object(
        schema, merge(OmegaConf.structured(schema), _container(values, location), location), location
    )


def as_choice(entry: Any, location: str) -> Choice:
    """An entry of a list of parts: a name, or {name: …, args: {…}}."""
    if isinstance(entry, Choice):
        return entry
    if isinstance(entry, str):
        return Choice(entry)
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{location}: got {entry!r}, but takes names or {{name: …, args: {{…}}}}")
    values = Fitter(Choice, location).fit(dict(entry))
    return to_object(
        Choice, merge(OmegaConf.structured(Choice), _container(values, location), location), location
    )


def as_entries(schema: type[T], entries: Any, location: str) -> list[T]:
    """A list of instances of a dataclass, each given as one or as a mapping of its fields."""
    if not isinstance(entries, list | tuple):
        raise ConfigError(f"{location}: expected a list, got {entries!r}")
    return [_as_entry(schema, entry, location) for entry in entries]


def _as_entry(schema: type[T], entry: Any, location: str) -> T:
    if isinstance(entry, schema):
        return entry
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{location}: got {entry!r}, but takes keys and values")
    values = Fitter(schema, location).fit(dict(entry))
    return to_object(
        schema, merge(OmegaConf.structured(schema), _container(values, location), location), location
    )
