"""Configurations: one dataclass a verb, filled from a preset or a YAML file and `key=value` words; strict.

An unknown key, or a missing value or one of the wrong type, is a ConfigError with its place and a suggestion. The
arguments of a part that is chosen by name are the fields of its dataclass, checked in the same way.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import OmegaConf, read_write
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from diffdpo import presets
from diffdpo.errors import ConfigError, DataError
from diffdpo.registry import Choice, Table, closest, pick
from diffdpo.text_files import printable, read_text

T = TypeVar("T")
INPUT_FILE: Mapping[str, Any] = {"input_file": True}
"""Metadata of a field that names a data file, such as prompts: the file may lie beside the preset."""


def build_config(schema: type[T], source: str | Path | None, words: Sequence[str] = (), verb: str = "") -> T:
    """The configuration of a verb: defaults, then a preset or a YAML file, then `key=value` words."""
    path = presets.find_preset(verb, str(source)) if source is not None else presets.default(verb)
    layers: list[tuple[str, Any]] = []
    if path is not None:
        layers.append((presets.title(path), _resolve_files(schema, read_yaml(path), path.parent)))
    for word in words:
        if "=" not in word:
            raise ConfigError(f"command line: {word!r} is not of the form key=value")
        if printable(word) != word:
            raise ConfigError(f"command line: {printable(word)}: not UTF-8; rename the file, or link to it")
    part_keys = {f"{key}{end}" for key in _choice_keys(schema) for end in ("", ".name")}
    for word in sorted(words, key=lambda word: word.partition("=")[0] not in part_keys):  # then arguments
        layers.append((f"command line: {word}", OmegaConf.from_dotlist([word])))
    cfg: Any = OmegaConf.structured(schema)
    named_keys: set[str] = set()
    for location, layer in layers:
        full_layer = _spell_out(schema, layer)
        cfg = merge(schema, _without_foreign_args(schema, cfg, full_layer, named_keys), full_layer, location)
    return to_object(schema, cfg, presets.title(path) if path else "command line")


def read_yaml(path: Path) -> Any:
    """The mapping in a YAML file; ConfigError for a file without valid YAML, or without a mapping."""
    try:
        content = OmegaConf.load(StringIO(read_text(path)))
    except DataError as error:
        raise ConfigError(str(error)) from None
    except (OSError, RecursionError):
        raise ConfigError(f"{path}: expected keys and values") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not OmegaConf.is_dict(content):
        raise ConfigError(f"{path}: expected keys and values, got a list")
    return content


def merge(schema: type, base: Any, layer: Any, location: str) -> Any:
    """A layer merged over others. ConfigError with the location for a key that the schema does not have."""
    try:
        return OmegaConf.merge(base, layer)
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        hint = closest(key.rsplit(".", 1)[-1], keys(schema))
        raise ConfigError(f"{location}: unknown key {key!r}.{hint}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{location}: {_message(error)}") from None


def to_object(schema: type[T], cfg: Any, location: str) -> T:
    """The configuration as its dataclass. ConfigError for a value that is missing or refused."""
    missing_keys = sorted(OmegaConf.missing_keys(cfg))
    if missing_keys:
        raise ConfigError(f"{location}: no value for {', '.join(missing_keys)}; add {missing_keys[0]}=…")
    try:
        return OmegaConf.to_object(cfg)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{location}: {_message(error)}") from None
    except (ValueError, TypeError) as error:  # a dataclass refused its own arguments
        raise ConfigError(f"{location}: {error}") from None


def _message(error: OmegaConfBaseException) -> str:
    """The first line of an error of OmegaConf, after the key that caused it."""
    return f"{error.full_key}: {(error.msg or str(error)).splitlines()[0]}"


def keys(schema: type) -> Iterator[str]:
    """All keys of a schema, at any depth."""
    for name, hint in get_type_hints(schema).items():
        yield name
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from keys(inner)


def to_yaml(cfg: Any) -> str:
    """A configuration as YAML, with every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))


def _resolve_files(schema: type, layer: Any, folder: Path) -> Any:
    """A layer with the paths of data files beside it; other files are relative to the working directory."""
    for field in fields(schema):
        value = layer.get(field.name)
        if field.metadata.get("input_file") and isinstance(value, str) and (folder / value).is_file():
            layer[field.name] = str(folder / value)
    return layer


def _choice_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """The keys under which a part is chosen by name, at any depth."""
    for name, hint in get_type_hints(schema).items():
        for inner in (hint, *get_args(hint)):
            if inner is Choice:
                yield f"{prefix}{name}"
            elif is_dataclass(inner) and isinstance(inner, type):
                yield from _choice_keys(inner, f"{prefix}{name}.")


def _spell_out(schema: type, layer: Any) -> Any:
    """A layer in which parts given by a bare name are {name: …}."""
    for key in _choice_keys(schema):
        value = OmegaConf.select(layer, key, throw_on_missing=False)
        if isinstance(value, str) and value != "???":
            OmegaConf.update(layer, key, {"name": value}, merge=False)
        elif isinstance(value, bool | int | float) or OmegaConf.is_list(value):
            name = key.rpartition(".")[2]
            hint = next((f" Did you mean {k!r}?" for k in keys(schema) if k.startswith(f"{name}_")), "")
            raise ConfigError(f"{key}: got {value}, but takes a name or {{name: …, args: {{…}}}}.{hint}")
    return layer


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
    args = _spell_out(schema, OmegaConf.create(dict(choice.args)))
    return to_object(schema, merge(schema, OmegaConf.structured(schema), args, location), location)


def as_choice(entry: Any, location: str) -> Choice:
    """An entry of a list of parts: a name, or {name: …, args: {…}}."""
    if isinstance(entry, Choice):
        return entry
    if isinstance(entry, str):
        return Choice(entry)
    cfg = merge(Choice, OmegaConf.structured(Choice), OmegaConf.create(entry), location)
    return to_object(Choice, cfg, location)
