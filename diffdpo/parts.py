"""Parts by name: from a choice in a configuration to a model, an objective, a rule or scorers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdpo.config import as_choice, build_part
from diffdpo.errors import ConfigError
from diffdpo.inputs import content_digest, digest
from diffdpo.registry import Choice

if TYPE_CHECKING:
    from diffdpo.executors.base import Executor
    from diffdpo.extractors.base import Extractor
    from diffdpo.mining import Rule, Utility
    from diffdpo.models.base import SongModel
    from diffdpo.sampling.config import SamplingConfig
    from diffdpo.scorers.base import Scorer
    from diffdpo.search.config import SearchConfig
    from diffdpo.search.task import SearchMethod
    from diffdpo.types import Objective


def build_model(choice: Choice) -> "SongModel":
    """The song model, loaded."""
    return check_model(choice).load()


def model_choice(name: str, words: Sequence[str]) -> Choice:
    """A model and its arguments from the words of a command line, each KEY=VALUE."""
    args: dict[str, str] = {}
    for word in words:
        key, sign, args[key] = word.partition("=")
        if not sign:
            raise ConfigError(f"--arg {word}: not of the form key=value")
    return Choice(name, args)


def check_model(choice: Choice) -> Any:
    """The configuration of a model, its name and arguments checked, without loading the model."""
    from diffdpo.models import MODELS

    return build_part(MODELS, choice)


def model_digest(choice: Choice) -> str:
    """Identity of a chosen model: its name and arguments, with the content of files and folders for their paths."""
    return digest([choice.name, content_of(choice.args)])


def content_of(value: Any) -> Any:
    """A value with digests for the paths that exist in it, also for those of a list of adapters, `a@0.5,b`."""
    if isinstance(value, Mapping):
        return {key: content_of(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [content_of(entry) for entry in value]
    if not isinstance(value, str) or not value:
        return value
    if Path(value).exists():
        return content_digest(Path(value))
    if "," in value:
        return [content_of(entry.strip()) for entry in value.split(",")]
    path, _, weight = value.rpartition("@")
    return [content_of(path), weight] if path and Path(path).exists() else value


def build_objective(choice: Choice) -> "Objective":
    """The objective, its arguments checked."""
    from diffdpo.objectives import OBJECTIVES

    return build_part(OBJECTIVES, choice)


def build_rule(choice: Choice) -> "Rule":
    """The mining rule, its arguments checked; of a union, those of all its rules."""
    from diffdpo.mining import RULES, Union

    rule = build_part(RULES, choice)
    if not isinstance(rule, Union):
        return rule
    if not rule.rules:
        raise ConfigError("rule 'union': no rules; name some, rules=[strong_domination, best_versus_worst]")
    return Union([build_rule(as_choice(entry, "rule 'union'")) for entry in rule.rules])


def build_utility(choice: Choice, axes: Collection[str] = ()) -> "Utility":
    """The utility of scores, its arguments checked; a UserError if it has no measure of one of these axes."""
    from diffdpo.mining import AXIS_UTILITIES

    utility: Utility = build_part(AXIS_UTILITIES, choice)
    utility.check(axes)
    return utility


def build_scorers(entries: Sequence[Any]) -> dict[str, "Scorer"]:
    """The scorers of a list of names and {name: …, args: {…}}, by name, their arguments checked."""
    from diffdpo.scorers import SCORERS

    scorers: dict[str, Scorer] = {}
    for entry in entries:
        choice = as_choice(entry, "scorers")
        scorer = build_part(SCORERS, choice)
        name = getattr(scorer, "stored_as", "") or choice.name
        if name in scorers:
            raise ConfigError(f"scorers: {name!r} is named twice")
        scorers[name] = scorer
    return scorers


def build_extractors(entries: Sequence[Any], key: str) -> dict[str, "Extractor"]:
    """The extractors of a list of names and {name: …, args: {…}}, by name, their arguments checked; `key` is where
    they are named."""
    from diffdpo.extractors import EXTRACTORS

    parts: dict[str, Extractor] = {}
    for entry in entries:
        choice = as_choice(entry, key)
        if choice.name in parts:
            raise ConfigError(f"{key}: {choice.name!r} is named twice")
        parts[choice.name] = build_part(EXTRACTORS, choice)
    return parts


def check_search(search: "SearchConfig | None", sampling: "SamplingConfig") -> None:
    """ConfigError for a search method, an argument or an axis that does not exist, or that the sampling does not
    allow."""
    from diffdpo.search.task import check_method

    if search is not None:
        check_method(build_method(search.method), sampling, search.budget)
        search.reward.check()


def build_method(choice: Choice) -> "SearchMethod":
    """The search method, its arguments checked."""
    from diffdpo.search import METHODS

    method: SearchMethod = build_part(METHODS, choice)
    return method


def build_executor(choice: Choice) -> "Executor":
    """The executor, its arguments checked."""
    from diffdpo.executors import EXECUTORS

    executor: Executor = build_part(EXECUTORS, choice)
    return executor
