"""YAML and `key=value` words as trees of text: what a value means is for the field that takes it to say.

YAML 1.1 reads `no` as false, `2026_11_28` as 20261128 and `1:30` as 90. Here every value keeps the text that was
written, so that a field of text gets it whole, and a number or a truth value is read from it where one is wanted.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from yaml.constructor import SafeConstructor

from diffdpo.errors import ConfigError

NULLS = ("", "~", "null", "Null", "NULL")
TRUE_WORDS, FALSE_WORDS = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")
FLOAT_TEXT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")
INFINITE_TEXT = re.compile(r"[-+]?\.?inf|\.?nan", re.IGNORECASE)
BASES = {"0x": 16, "0o": 8, "0b": 2}
YAML_TYPES = ("str", "int", "float", "bool", "null", "timestamp", "map", "seq", "merge", "value")
YAML_TAGS = {f"tag:yaml.org,2002:{name}" for name in YAML_TYPES}


@dataclass(frozen=True)
class Scalar:
    """One value, as it was written."""

    text: str
    style: Literal["plain", "quoted", "word"] = "plain"
    """plain or quoted in YAML; or the rest of a word of the command line, in which a list or mapping is YAML."""

    @property
    def is_null(self) -> bool:
        return self.style != "quoted" and self.text.strip() in NULLS

    @property
    def value(self) -> Any:
        """What the text means where no field says it: null, a truth value, a number, else text."""
        if self.style == "quoted":
            return self.text
        if self.is_null:
            return None
        if self.text.lower() in (*TRUE_WORDS[:3], *FALSE_WORDS[:3]):
            return self.text.lower() in TRUE_WORDS
        if re.fullmatch(r"[-+]?\d+", self.text):
            return int(self.text)
        number = None if "_" in self.text else float_of(self.text)
        return self.text if number is None else number


def int_of(text: str) -> int | None:
    """The whole number that a text spells: 8, 1_000, 0x1f, 1e3; None for another text."""
    digits = text.strip()
    base = BASES.get(digits[:2].lower(), 10)
    try:
        return int(digits, base)
    except ValueError:
        number = float_of(digits)
        return int(number) if number is not None and number.is_integer() else None


def float_of(text: str) -> float | None:
    """The number that a text spells, .inf and nan among them; None for another text."""
    digits = text.strip()
    if INFINITE_TEXT.fullmatch(digits):
        return float(digits.replace(".", ""))
    return float(digits.replace("_", "")) if FLOAT_TEXT.fullmatch(digits) else None


def bool_of(text: str) -> bool | None:
    """The truth value that a text spells: true, yes, on and their opposites; None for another text."""
    word = text.strip().lower()
    return word in TRUE_WORDS if word in (*TRUE_WORDS, *FALSE_WORDS) else None


def parse_yaml(text: str | bytes, location: str) -> Any:
    """A YAML document as dicts, lists and Scalars; {} for an empty one. ConfigError for what is not valid YAML."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            return {} if node is None else _tree(node, loader, location, ())
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{location}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{location}: not valid YAML: nested too deeply") from None


def _tree(node: yaml.Node, loader: SafeConstructor, location: str, above: tuple[int, ...]) -> Any:
    if node.tag not in YAML_TAGS:
        raise ConfigError(f"{location}: the tag {node.tag} is not allowed; write plain values")
    if isinstance(node, yaml.ScalarNode):
        return Scalar(node.value, "plain" if node.style is None else "quoted")
    if id(node) in above:
        raise ConfigError(f"{location}: not valid YAML: an anchor holds itself")
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_tree(entry, loader, location, above) for entry in node.value]
    assert isinstance(node, yaml.MappingNode)
    keys = [key.value for key, _ in node.value]
    _check_keys(keys, location)
    loader.flatten_mapping(node)
    return {key.value: _tree(value, loader, location, above) for key, value in node.value}


def _check_keys(keys: list[Any], location: str) -> None:
    for key in keys:
        if not isinstance(key, Hashable):
            raise ConfigError(f"{location}: not valid YAML: a key must be one word")
        if keys.count(key) > 1:
            raise ConfigError(f"{location}: the key {key!r} stands twice; keep one")


def parse_word(word: str) -> tuple[list[str], Scalar]:
    """A word KEY.KEY=VALUE of the command line: its keys, and the text behind the first "=".

    ConfigError for a word of another form.
    """
    key, sign, text = word.partition("=")
    keys = re.findall(r"[^.\[\]]+", key)
    if not sign or not keys:
        raise ConfigError(f"command line: {word!r} is not of the form key=value")
    return keys, Scalar(text, "word")


def text_of(scalar: Scalar) -> str:
    """The text of a value, without the quotes that a word of the command line may stand in."""
    text = scalar.text
    if scalar.style == "word" and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def open_word(node: Any, location: str) -> Any:
    """A word of the command line as YAML; any other node as it is."""
    if not (isinstance(node, Scalar) and node.style == "word"):
        return node
    tree = parse_yaml(node.text, location)
    return Scalar("") if tree == {} and not node.text.strip().startswith("{") else tree


def plain_value(node: Any) -> Any:
    """A tree as plain values, where no field says what they mean."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, dict):
        return {key: plain_value(value) for key, value in node.items()}
    return [plain_value(entry) for entry in node] if isinstance(node, list | tuple) else node
