"""Plug-ins by name: from a choice in a configuration to an object whose arguments are checked.

The arguments of a plug-in are the fields of its dataclass. An unknown name or key, a value of the wrong type or a
missing one is a ConfigError that says where it stands and what was probably meant.
"""

from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from diffdpo.errors import ConfigError
from diffdpo.mining import RULES, Rule, Union
from diffdpo.models import MODELS
from diffdpo.models.base import SongModel
from diffdpo.objectives import OBJECTIVES
from diffdpo.registry import Choice, Table, closest, pick
from diffdpo.scorers import SCORERS
from diffdpo.scorers.base import Scorer
from diffdpo.types import Objective

T = TypeVar("T")


def merge(schema: type, merged: Any, layer: Any, where: str) -> Any:
    """A layer on top of others, all its keys known; `where` it stands is said when one is not."""
    try:
        return OmegaConf.merge(merged, layer)
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        hint = closest(key.rsplit(".", 1)[-1], names(schema))
        raise ConfigError(f"{where}: unknown key {key!r}.{hint}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {error.full_key}: {(error.msg or str(error)).splitlines()[0]}") from None


def to_object(schema: type[T], merged: Any, where: str) -> T:
    """The dataclass, every value given and accepted."""
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(f"{where}: no value for {', '.join(missing)}; add {missing[0]}=…")
    try:
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {error.full_key}: {(error.msg or str(error)).splitlines()[0]}") from None
    except (ValueError, TypeError) as error:  # a dataclass refused its own arguments
        raise ConfigError(f"{where}: {error}") from None


def names(schema: type) -> Iterator[str]:
    """All keys a schema knows, at any depth."""
    for name, hint in get_type_hints(schema).items():
        yield name
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from names(inner)


def plug_in(kind: str, table: Table[type], choice: Choice) -> Any:
    """The entry of a table that is chosen, with its arguments."""
    schema = pick(kind, table, choice.name)
    where = f"{kind} {choice.name!r}"
    merged = merge(schema, OmegaConf.structured(schema), OmegaConf.create(choice.args), where)
    return to_object(schema, merged, where)


def build_objective(choice: Choice) -> Objective:
    """The objective, its arguments checked."""
    return plug_in("objective", OBJECTIVES, choice)


def build_rule(choice: Choice) -> Rule:
    """The mining rule, its arguments checked; of a union, those of all its rules."""
    rule = plug_in("rule", RULES, choice)
    if not isinstance(rule, Union):
        return rule
    if not rule.rules:
        raise ConfigError("rule 'union': no rules; name some, rules=[strong_domination, best_versus_worst]")
    return Union([build_rule(_choice(entry, "rule 'union'")) for entry in rule.rules])


def build_model(choice: Choice) -> SongModel:
    """The song model, loaded."""
    return plug_in("model", MODELS, choice).load()


def check_model(choice: Choice) -> None:
    """A model's name and arguments, without loading it."""
    plug_in("model", MODELS, choice)


def build_scorers(entries: Sequence[Any]) -> dict[str, Scorer]:
    """The scorers of a list of names and {name: …, args: {…}}, by name, their arguments checked."""
    scorers: dict[str, Scorer] = {}
    for entry in entries:
        choice = _choice(entry, "scorers")
        if choice.name in scorers:
            raise ConfigError(f"scorers: {choice.name!r} is named twice")
        scorers[choice.name] = plug_in("scorer", SCORERS, choice)
    return scorers


def _choice(entry: Any, where: str) -> Choice:
    """An entry of a list of plug-ins: a name, or {name: …, args: {…}}."""
    fields = {"name": entry} if isinstance(entry, str) else entry
    merged = merge(Choice, OmegaConf.structured(Choice), OmegaConf.create(fields), where)
    return to_object(Choice, merged, where)


def check(cfg: Any) -> None:
    """Every plug-in a configuration names, and its arguments, before anything is loaded."""
    for kind, build in (("objective", build_objective), ("rule", build_rule), ("model", check_model)):
        if hasattr(cfg, kind):
            build(getattr(cfg, kind))
    build_scorers(getattr(cfg, "scorers", []))
