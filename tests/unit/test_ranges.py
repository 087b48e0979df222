"""Every number of every configuration is checked: NaN is none, and -1 stands only where it means something."""

import inspect
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import get_args, get_origin, get_type_hints

import pytest

from diffdpo import config
from diffdpo.cli import VERBS
from diffdpo.config_fields import is_optional
from diffdpo.errors import ConfigError, UserError
from diffdpo.executors import EXECUTORS
from diffdpo.extractors import EXTRACTORS
from diffdpo.mining import RULES
from diffdpo.models import MODELS
from diffdpo.objectives import OBJECTIVES
from diffdpo.objectives.links import LINKS
from diffdpo.recipes.perturb import PerturbationSettings
from diffdpo.recipes.reward import RewardRun
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.song import SongSettings
from diffdpo.recipes.train import TrainRun
from diffdpo.registry import Choice
from diffdpo.sampling.guidance import GUIDERS
from diffdpo.sampling.solver import SOLVERS, build_solver
from diffdpo.scorers import SCORERS
from diffdpo.search import METHODS

NUMBERS = (int, float)
NEGATIVE = {
    "PrepareRun.loudness_lufs",
    "SamplingConfig.sway",
    "Timesteps.mean",
    "Timesteps.low",
    "Timesteps.high",
    "LogSnrGrid.start",
    "LogSnrGrid.end",
    "BestVersusWorst.min_axis_margin",
    "AdapterConfig.strength",
    "Knob.weight",
    "SteeringConfig.alpha",
    "RewardConfig.weights",
    "Constraint.low",
    "Constraint.high",
    "DataConfig.scales",
    "CalibrateRun.strengths",
    "AdaptRun.low",
    "ExcerptConfig.loudness_lufs",
    "ExcerptConfig.true_peak_db",
    "VotesRun.min_reliability",
}
"""Numbers that may be negative."""
NEEDS = {
    "Knob.weight": {"negative": {"skip": [1]}},
    "Knob.interval": {"negative": {"skip": [1]}},
    "SteeringConfig.alpha": {"direction": "x.safetensors"},
    "SteeringConfig.blocks": {"direction": "x.safetensors"},
    "SteeringConfig.interval": {"direction": "x.safetensors"},
    "SteeringConfig.every": {"direction": "x.safetensors"},
    "Constraint.low": {"axis": "harmony.key"},
    "Constraint.high": {"axis": "harmony.key"},
    "TimestepWeight.clip": {"weight": "clipped_elbo"},
    "AdapterConfig.strength": {"path": "adapter"},
    "AdapterConfig.interval": {"path": "adapter"},
}


def schemas(schema):
    """A dataclass and those below it."""
    yield schema
    for hint in get_type_hints(schema).values():
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type) and inner is not Choice:
                yield from schemas(inner)


ROOTS = [getattr(import_module(f"diffdpo.recipes.{verb}"), name) for verb, (name, _) in VERBS.items()]
ROOTS.append(RewardRun)
PART_TABLES = (MODELS, OBJECTIVES, RULES, SCORERS, GUIDERS, METHODS, EXTRACTORS, EXECUTORS)
PARTS = [part for table in PART_TABLES for part in table.entries.values()]
ALL = list(dict.fromkeys(s for root in [*ROOTS, *PARTS] for s in schemas(root)))


def numeric(hint):
    """How a number is put into a field of this type; None for fields without numbers."""
    if is_optional(hint):
        hint = next(inner for inner in get_args(hint) if inner is not type(None))
    if hint in NUMBERS:
        return lambda value: value
    if get_origin(hint) in (list, tuple) and get_args(hint)[0] in NUMBERS:
        return lambda value: [value, value]
    if get_origin(hint) is dict and get_args(hint)[1] in NUMBERS:
        return lambda value: {"name": value}
    return None


CASES = [
    pytest.param(schema, name, put, id=f"{schema.__name__}.{name}")
    for schema in ALL
    for name, hint in get_type_hints(schema).items()
    if name in {field.name for field in fields(schema)} and (put := numeric(hint))
]


def build(schema, values):
    """A dataclass from a layer of a configuration, with every field that must be named."""
    required = {
        field.name: [] if get_origin(get_type_hints(schema)[field.name]) is list else "x"
        for field in fields(schema)
        if field.default is not MISSING and field.default == "???"
    }
    fitter = config.Fitter(schema, "test")
    layer = config.OmegaConf.create(fitter.fit(required | values))
    return config.to_object(schema, config.merge(config.OmegaConf.structured(schema), layer, "test"), "test")


@pytest.mark.parametrize(("schema", "name", "put"), CASES)
def test_every_number_has_its_range(schema, name, put):
    label = f"{schema.__name__}.{name}"
    needs = NEEDS.get(label, {})
    with pytest.raises(ConfigError, match=rf"{name}|crop|inpaint|range"):
        build(schema, {**needs, name: put(float("nan"))})
    if label not in NEGATIVE:
        with pytest.raises(ConfigError, match=rf"{name}|crop|inpaint|range"):
            build(schema, {**needs, name: put(-1)})


def test_the_walk_reaches_the_numbers():
    names = {str(case.id) for case in CASES}
    assert len(names) > 80
    assert names >= {
        "TrainConfig.learning_rate", "PrepareRun.style_window_s", "LoraConfig.alpha", "RoundRun.candidates",
        "APG.momentum", "MineRun.weights", "AutoBeta.range", "SongEval.batch",
        "SampleRun.seed", "Pareto.temperature", "CropConfig.min_frames",
    }  # fmt: skip
    assert names >= NEGATIVE


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.learning_rate=nan"], "train.learning_rate must be a positive number, got nan"),
        (["train.learning_rate=.inf"], "train.learning_rate must be a positive number, got inf"),
        (["train.lora.targets=[]"], "lora.targets must name layers"),
        (["train.lora.alpha=0"], "lora.alpha must be a positive number, got 0"),
        (["train.workers=-1"], "train.workers must be at least 0, got -1"),
        (["train.warmup_steps=-5"], "train.warmup_steps must be at least 0, got -5"),
        (["seed=-1"], "seed must be a whole number of at least 0"),
        (["seed=99999999999999999999"], "seed must be a whole number of at least 0, below 2"),
    ],
)
def test_a_number_out_of_range_is_one_line(words, says):
    with pytest.raises(ConfigError, match=says) as error:
        config.build_config(TrainRun, None, ["out=x", *words])
    assert "\n" not in str(error.value)


def test_no_song_a_prompt_is_refused():
    with pytest.raises(ConfigError, match="per_prompt must be at least 1, got 0"):
        config.build_config(SampleRun, None, ["out=x", "prompts=p", "per_prompt=0"])


def test_a_prepared_window_has_a_length():
    schema = import_module("diffdpo.recipes.prepare").PrepareRun
    with pytest.raises(ConfigError, match="style_window_s must be a positive number, got 0"):
        config.build_config(schema, None, ["out=x", "songs=s", "style_window_s=0"])


def keywords(function):
    """The keyword parameters of a function, wrapped or not."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


ARGUMENTS = [
    (name, argument) for name, solver in SOLVERS.entries.items() for argument in keywords(solver.step)
]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_the_arguments_of_a_solver_have_theirs(name, argument, value):
    with pytest.raises((ValueError, UserError), match=argument):
        build_solver(Choice(name, {argument: value}))


@pytest.mark.parametrize("name", [name for name, link in LINKS.entries.items() if keywords(link)])
def test_the_arguments_of_a_link_have_theirs(name):
    for argument in keywords(LINKS.entries[name]):
        with pytest.raises(ConfigError, match=argument):
            build(OBJECTIVES["dpo"], {"link": {"name": name, "args": {argument: float("nan")}}})


@pytest.mark.parametrize("settings", [SongSettings, PerturbationSettings])
def test_the_options_of_commands_have_theirs(settings):
    for field in fields(settings):
        if field.type in NUMBERS:
            for value in (float("nan"), -1):
                with pytest.raises(ValueError, match=field.name):
                    settings(**{field.name: value})
