"""Values of a configuration by the types of its fields: text stays text, one value is a list of one, and a value of
another kind is refused in one line.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from diffdpo.config_paths import expand_path
from diffdpo.errors import ConfigError
from diffdpo.registry import Choice, closest, table_for
from diffdpo.yaml_text import (
    Scalar,
    bool_of,
    float_of,
    int_of,
    open_word,
    parse_yaml,
    plain_value,
    text_of,
)

MISSING_TEXT, REFERENCE = "???", "${"
"""A value that is still to be named, and the beginning of a reference to another key."""
NUMBER_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Fitter:
    """Fits trees of text and plain values to a schema; names the `location` of what does not fit."""

    schema: type
    location: str
    base: Any = None
    """The configuration below this layer, which names the parts that the layer gives arguments to."""

    def fit(self, tree: Any) -> Any:
        """The tree of a whole configuration as plain values of the right types."""
        return self._mapping_of(self.schema, tree, "")

    def _mapping_of(self, schema: type, node: Any, key: str) -> dict[str, Any]:
        """Values of a dataclass, by field."""
        hints, by_name = get_type_hints(schema), {field.name: field for field in fields(schema)}
        values = {}
        for name, value in self._items(node, key):
            full_key = f"{key}.{name}" if key else name
            if name not in by_name:
                keys = [key for key in keys_of(self.schema) if key != name]
                names = f" Known: {', '.join(by_name)}." if key.endswith(".args") else ""
                places = [place for place in paths_of(self.schema) if place.endswith(f".{name}")]
                top = [place for place in places if place.count(".") == min(p.count(".") for p in places)]
                place = f" Did you mean {top[0]!r}?" if len(top) == 1 else ""
                hint = (place if not key else "") or closest(name, by_name) or names or closest(name, keys)
                raise ConfigError(f"{self.location}: unknown key {full_key!r}.{hint}")
            values[name] = self._value(hints[name], value, full_key, by_name[name])
        return values

    def _items(self, node: Any, key: str) -> list[tuple[str, Any]]:
        tree = open_word(node, self.location)
        if isinstance(tree, Mapping):
            return [(str(name), value) for name, value in tree.items()]
        if isinstance(tree, Scalar) and tree.is_null:
            return []
        raise self._refusal(key, "keys and values", node)

    def _refusal(self, key: str, kind: str, node: Any) -> ConfigError:
        value = node.text if isinstance(node, Scalar) else plain_value(node)
        place = f"{self.location}: {key}" if key else self.location
        return ConfigError(f"{place}: expected {kind}, got {_spell(value)}")

    def _value(self, hint: Any, node: Any, key: str, field: Field[Any]) -> Any:
        """A value of one field, by its type."""
        if is_optional(hint):
            if node is None or (isinstance(node, Scalar) and node.is_null):
                return None
            hint = next(inner for inner in get_args(hint) if inner is not type(None))
        if get_origin(hint) in (Union, types.UnionType):
            hint = list[str] if _is_list(node) else str
        if hint is Choice:
            return self._choice(node, key, field)
        if is_dataclass(hint) and isinstance(hint, type):
            return self._mapping_of(hint, node, key)
        if get_origin(hint) is dict:
            return self._dictionary(get_args(hint)[1], node, key, field)
        if get_origin(hint) in (list, tuple):
            return self._entries(hint, node, key, field)
        return self._leaf(hint, node, key, field)

    def _leaf(self, hint: Any, node: Any, key: str, field: Field[Any]) -> Any:
        """A value that is not made of others."""
        if hint is str or (isinstance(node, Scalar | str) and _is_open(node)):
            return self._text(node, key, field)
        if get_origin(hint) is Literal:
            return self._literal(get_args(hint), node, key)
        if hint in NUMBER_NAMES:
            return self._number(hint, node, key)
        return plain_value(open_word(node, self.location))

    def _text(self, node: Any, key: str, field: Field[Any] | None = None) -> str:
        """Text as it was written; that of a path with `~` and variables expanded."""
        if isinstance(node, Scalar):
            text = text_of(node)
            if node.is_null and text:
                raise self._refusal(key, "text (quote it if it is meant, or write '' for none)", node)
        elif isinstance(node, str | int | float | Path) and not isinstance(node, bool):
            text = str(node)
        else:
            raise self._refusal(key, "text", node)
        if field is None or not field.metadata.get("path"):
            return text
        try:
            return expand_path(text, list(keys_of(self.schema)), field.metadata.get("separator", ""))
        except ConfigError as error:
            raise ConfigError(f"{self.location}: {key}: {error}") from None

    def _literal(self, choices: tuple[Any, ...], node: Any, key: str) -> str:
        text = text_of(node) if isinstance(node, Scalar) else node
        if text not in choices:
            kind = f"one of {', '.join(map(str, choices))}"
            hint = closest(str(text), [str(choice) for choice in choices])
            raise ConfigError(f"{self.location}: {key}: expected {kind}, got {_spell(text)}.{hint}")
        return str(text)

    def _number(self, kind: type, node: Any, key: str) -> int | float | bool:
        """A truth value or a number, from its text or from a plain value."""
        read = {int: int_of, float: float_of, bool: bool_of}[kind]
        node = Scalar(node, "quoted") if isinstance(node, str) else node
        if isinstance(node, Scalar):
            value = read(text_of(node))
        elif isinstance(node, bool) or kind is bool:
            value = node if kind is bool and isinstance(node, bool) else None
        elif isinstance(node, int | float):
            value = float(node) if kind is float else int(node) if int_of(str(node)) is not None else None
        else:
            value = None
        if value is None:
            raise self._refusal(key, NUMBER_NAMES[kind], node)
        return value

    def _entries(self, hint: Any, node: Any, key: str, field: Field[Any]) -> list[Any]:
        """A list; one value is a list of one, and no value is an empty list."""
        args = get_args(hint)
        entries = self._split(node, key)
        if get_origin(hint) is tuple and args[-1] is not Ellipsis and len(entries) != len(args):
            raise self._refusal(key, f"{len(args)} values", entries)
        inner = args if get_origin(hint) is tuple else (args or (Any,)) * len(entries)
        if inner and inner[0] is Any:
            return [self._part(entry, f"{key}[{place}]", field) for place, entry in enumerate(entries)]
        return [
            self._value(kind, entry, f"{key}[{place}]" if len(entries) > 1 else key, field)
            for place, (kind, entry) in enumerate(zip(inner, entries, strict=False))
        ]

    def _split(self, node: Any, key: str) -> list[Any]:
        if isinstance(node, Scalar) and node.style == "word":
            opens = node.text.strip()[:1]
            if opens in ("[", "{"):
                node = parse_yaml(node.text, f"{self.location}: {key}")
        if isinstance(node, list | tuple):
            return list(node)
        if node is None or (isinstance(node, Scalar) and (node.is_null or not node.text)):
            return []
        return [node]

    def _dictionary(self, hint: Any, node: Any, key: str, field: Field[Any]) -> dict[str, Any]:
        """Values by key; a key with dots in it, such as an axis, may have been taken apart."""
        values: dict[str, Any] = {}
        for name, value in self._items(node, key):
            if hint in (str, *NUMBER_NAMES) and isinstance(value, Mapping):
                inner = self._dictionary(hint, value, f"{key}.{name}", field)
                values |= {f"{name}.{end}": entry for end, entry in inner.items()}
            else:
                values[name] = self._value(hint, value, f"{key}.{name}", field)
        return values

    def _choice(self, node: Any, key: str, field: Field[Any]) -> Any:
        """A part: its bare name, or {name: …, args: {…}}."""
        node = open_word(node, self.location)
        if isinstance(node, Choice):
            node = {"name": node.name, "args": node.args}
        if isinstance(node, str):
            node = Scalar(node, "quoted")
        if isinstance(node, Scalar):
            if not isinstance(node.value, str):
                node = node.text
            else:
                return {"name": text_of(node)}
        if not isinstance(node, Mapping):
            stem = key.rpartition(".")[2]
            hint = next(
                (f" Did you mean {k!r}?" for k in keys_of(self.schema) if k.startswith(f"{stem}_")), ""
            )
            got = plain_value(node)
            raise ConfigError(f"{key}: got {got}, but takes a name or {{name: …, args: {{…}}}}.{hint}")
        return self._named_part(node, key, field)

    def _part(self, entry: Any, key: str, field: Field[Any]) -> Any:
        """An entry of a list of parts: text is a name."""
        if isinstance(entry, Scalar):
            return text_of(entry)
        if isinstance(entry, Choice):
            return entry
        return self._named_part(entry, key, field) if isinstance(entry, Mapping) else plain_value(entry)

    def _named_part(self, node: Mapping[str, Any], key: str, field: Field[Any]) -> dict[str, Any]:
        """{name: …, args: {…}} with the arguments as the part's dataclass has them."""
        values: dict[str, Any] = {}
        for name, value in node.items():
            if name not in ("name", "args"):
                hint = closest(name, ("name", "args"))
                raise ConfigError(f"{self.location}: unknown key '{key}.{name}'.{hint}")
            if name == "name":
                values[name] = self._text(value, f"{key}.name")
        if "args" in node:
            values["args"] = self._args(node["args"], values.get("name"), key, field)
        return values

    def _args(self, node: Any, name: str | None, key: str, field: Field[Any]) -> Any:
        name = name or self._base_name(key, field)
        table = table_for(field.name)
        part = table[name] if table is not None and name in table else None
        tree = dict(self._items(node, f"{key}.args"))
        if not (isinstance(part, type) and is_dataclass(part)):
            return plain_value({entry: open_word(value, self.location) for entry, value in tree.items()})
        return self._mapping_of(part, tree, f"{key}.args")

    def _base_name(self, key: str, field: Field[Any]) -> str:
        """The name of the part that arguments without a name are for."""
        name = None
        if OmegaConf.is_config(self.base) and "[" not in key:
            name = OmegaConf.select(self.base, f"{key}.name", throw_on_missing=False)
        if name is None and callable(field.default_factory):
            default = field.default_factory()
            name = default.name if isinstance(default, Choice) else None
        return name or ""


def is_optional(hint: Any) -> bool:
    """Whether a type allows None."""
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def keys_of(schema: type) -> Iterator[str]:
    """All keys of a schema, at any depth."""
    for name, hint in get_type_hints(schema).items():
        yield name
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from keys_of(inner)


def paths_of(schema: type, prefix: str = "") -> Iterator[str]:
    """All keys of a schema, at any depth, as they are written on the command line."""
    for name, hint in get_type_hints(schema).items():
        yield f"{prefix}{name}"
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from paths_of(inner, f"{prefix}{name}.")


def _is_list(node: Any) -> bool:
    """Whether a value is written as a list."""
    is_word = isinstance(node, Scalar) and node.style == "word"
    return isinstance(node, list | tuple) or (is_word and node.text.strip()[:1] == "[")


def _is_open(node: Scalar | str) -> bool:
    """Whether a value is to be named later, or refers to another key."""
    text = node if isinstance(node, str) else node.text
    return text == MISSING_TEXT or REFERENCE in text


def _spell(value: Any) -> str:
    return "nothing" if value in (None, "") else repr(value)
