"""Configurations: one dataclass a verb, composed of the parts' own dataclasses; YAML plus `key=value`; strict.

An unknown key, a value of the wrong type or a missing one is a ConfigError that says where it stands and what
was probably meant.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from yaml import YAMLError

from diffdpo.data.datasets.examples import DataConfig
from diffdpo.errors import ConfigError
from diffdpo.evaluation.selection import StopRule
from diffdpo.mining import SpanConfig
from diffdpo.plugins import (
    OBJECTIVES,
    Choice,
    build_model,
    build_objective,
    build_rule,
    build_scorers,
    check,
    check_model,
    merge,
    names,
    to_object,
)
from diffdpo.sampling.longform import LongformConfig
from diffdpo.sampling.sampler import SamplingConfig
from diffdpo.training.config import TrainConfig

__all__ = [
    "OBJECTIVES",
    "OFFLINE",
    "SCHEMAS",
    "Choice",
    "DataConfig",
    "EvaluateRun",
    "MineRun",
    "PrepareRun",
    "RoundRun",
    "SampleRun",
    "ScoreRun",
    "TrainRun",
    "build_model",
    "build_objective",
    "build_rule",
    "build_scorers",
    "check",
    "check_model",
    "load",
    "names",
    "to_yaml",
]

T = TypeVar("T")


OFFLINE = ("harmony", "rhythm", "structure", "production", "musicnn", "tags")
"""The scorers that need no download; the last two are judges. `adherence` has to be asked for."""


GUARDED = {"beta": 500.0, "timestep": {"weight": "clipped_elbo"}, "safeguard": {"mu": 0.5}}
"""The pairwise objective that came nearest to the optimum where that is known (docs/theory/objectives.md)."""


@dataclass
class PrepareRun:
    """Songs to latents, styles and lyric tokens."""

    out: str = MISSING
    """The dataset folder to be made."""
    songs: str = MISSING
    """A folder of audio files, or a JSONL manifest (id, audio, text, lyrics, license, attribution, split)."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    loudness_lufs: float = -16.0
    """Songs are brought to this loudness before encoding."""
    style_window_s: float = 10.0
    """A style is computed for every such stretch of a song."""
    captions: int = 0
    """So many styles of each stretch come from captions: part of the song's text, part of what is measured there
    (tempo, brightness, …). A model that is prompted with text should have seen text. 0: the song's text only."""
    dtype: str = "fp16"
    """Of the latents on disk: fp32, fp16 or bf16."""
    valid_share: float = 0.05
    """Share of songs held out of training when the manifest has no splits."""


@dataclass
class SampleRun:
    """Prompts to songs."""

    out: str = MISSING
    prompts: str = MISSING
    """A prompts.jsonl."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    longform: LongformConfig = field(default_factory=LongformConfig)
    per_prompt: int = 1
    """Songs for each prompt, each with noise of its own."""
    seed: int = 0
    shard: int = 0
    shards: int = 1
    """Make only every `shards`-th song, beginning with number `shard`: to split work over machines."""
    audio: bool = True
    """Decode and write FLAC; without, only latents are written."""


@dataclass
class ScoreRun:
    """Songs to scores."""

    samples: list[str] = MISSING
    """Folders that `sample` wrote."""
    out: str = MISSING
    """Folder of the scores table; may be shared by many runs, scores are found again by the sound's hash."""
    scorers: list[Any] = field(default_factory=lambda: list(OFFLINE))
    """Names, or {name: …, args: {…}} for those with arguments."""
    window_s: float = 0.0
    """Score windows of this length too, to find where one song is better than another; 0: whole songs only.
    Judges hear no windows, nor do scorers of adherence and those that need longer ones."""
    hop_s: float = 0.0
    """A window begins every so many seconds; 0: half a window."""

    def __post_init__(self) -> None:
        for name in ("window_s", "hop_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {getattr(self, name)}")


@dataclass
class MineRun:
    """Scores to preference pairs, and to ratings of every song for objectives that need no pairs."""

    samples: list[str] = MISSING
    scores: str = MISSING
    out: str = MISSING
    axes: list[str] = field(default_factory=list)
    """Axes to mine; empty: all axes of all scorers that are not judges."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each axis in ratings, soft labels and spans; axes not named weigh 1."""
    pairs: bool = True
    """Mine pairs; false: ratings only."""
    rule: Choice = field(default_factory=lambda: Choice("best_versus_worst"))
    soft_label_temperature: float = 0.0
    """A pair's probability is sigmoid(margin / this), the margin in standard deviations; 0: all pairs are sure."""
    max_pairs: int = 0
    """Keep so many pairs, those with the widest margins, the axes taking turns; 0: all."""
    spans: SpanConfig | None = None
    """Find the stretches in which the winner is better, from scores of windows; {} with the defaults below."""
    gates: bool = True
    """Leave songs that fail a gate (silence, clipping, NaN) out of the winners and the losers."""

    def __post_init__(self) -> None:
        if not self.soft_label_temperature >= 0:
            raise ValueError(
                f"soft_label_temperature must not be negative, got {self.soft_label_temperature}"
            )
        if self.max_pairs < 0:
            raise ValueError(f"max_pairs must not be negative, got {self.max_pairs}")
        if not all(weight >= 0 for weight in self.weights.values()):
            raise ValueError(
                f"weights must not be negative, got {self.weights}: bigger is better on every axis"
            )


@dataclass
class TrainRun:
    """Train a song model on songs, preference pairs or rated songs."""

    out: str = MISSING
    """Run directory; the same command again resumes from it."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    data: DataConfig = field(default_factory=DataConfig)
    objective: Choice = field(default_factory=lambda: Choice("dpo"))
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0


@dataclass
class EvaluateRun:
    """Paired comparison of two models: same prompts, same seeds."""

    baseline: str = MISSING
    """Samples of the model before."""
    aligned: str = MISSING
    """Samples of the model after."""
    scores: str = MISSING
    out: str = MISSING
    mined_axes: list[str] = field(default_factory=list)
    """Axes that were optimised; all others in the scores are judges. Empty: as recorded by `pairs`."""
    pairs: str = ""
    """The mined pairs: refuses evaluation prompts that were mined, and tells the mined axes."""
    training: str = ""
    """Run directory whose curves the report shows."""
    listen: int = 6
    """Pairs of songs with players in the report: those with the worst change."""
    long_song: str = ""
    """One more song to hear."""
    long_song_caption: str = ""
    resamples: int = 4000
    command: str = ""
    """What to print as the command that makes the whole comparison again."""
    licence: str = ""
    """Of the weights, and so of the songs."""


@dataclass
class RoundRun:
    """Sample, score, mine, train, and evaluate against where the round began."""

    out: str = MISSING
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    mining_prompts: str = MISSING
    evaluation_prompts: str = MISSING
    candidates: int = 6
    """Songs sampled for each mining prompt."""
    evaluation_samples: int = 2
    """Songs sampled for each evaluation prompt, by each model, with the same seeds."""
    rounds: int = 1
    """Each round samples from, and is referenced to, the model of the round before."""
    stop: StopRule = field(default_factory=StopRule)
    """What ends rounds early. The best round's model is kept, not the last one's."""
    validation_prompts: str = ""
    """Prompts to choose the best round by, neither mined nor evaluated on. Without them the newest round that
    kept the rule about winners' errors is the best."""
    licence: str = ""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    scorers: list[Any] = field(default_factory=lambda: list(OFFLINE))
    """Names, or {name: …, args: {…}} for those with arguments."""
    axes: list[str] = field(default_factory=list)
    window_s: float = 0.0
    hop_s: float = 0.0
    """As in ScoreRun: windows of the candidates, for `spans`."""
    rule: Choice = field(default_factory=lambda: Choice("best_versus_worst"))
    weights: dict[str, float] = field(default_factory=dict)
    soft_label_temperature: float = 0.0
    max_pairs: int = 0
    spans: SpanConfig | None = None
    """These four as in MineRun."""
    objective: Choice = field(default_factory=lambda: Choice("dpo", deepcopy(GUARDED)))
    data: DataConfig = field(default_factory=DataConfig)
    """How what was mined is trained on: group_size, top_share, … Its folders are filled in by each round."""
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    long_song_s: float = 0.0
    """Length of one more song, sampled from the aligned model at the end; 0 for none."""
    long_song_prompt: str = ""


SCHEMAS: dict[str, type] = {
    "prepare": PrepareRun,
    "sample": SampleRun,
    "score": ScoreRun,
    "mine": MineRun,
    "train": TrainRun,
    "evaluate": EvaluateRun,
    "round": RoundRun,
    "demo": RoundRun,
}


def load(schema: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """The configuration of a verb: defaults, then the YAML file, then `key=value` words."""
    layers: list[Any] = []
    if path is not None:
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"{path}: no such configuration; presets are in configs/")
        try:
            layers.append((str(path), OmegaConf.load(path)))
        except YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    for word in overrides:
        if "=" not in word:
            raise ConfigError(f"command line: {word!r} is not of the form key=value")
        layers.append((f"command line: {word}", OmegaConf.from_dotlist([word])))
    merged: Any = OmegaConf.structured(schema)
    named: set[str] = set()
    for where, layer in layers:
        merged = merge(schema, _without_strangers(merged, layer, named), layer, where)
    return to_object(schema, merged, str(path or "command line"))


def _without_strangers(merged: Any, layer: Any, named: set[str]) -> Any:
    """Arguments belong to the plug-in they were given for: a layer that names another one starts afresh.

    So does the first that names one at all: the defaults' arguments are not its own. `named` remembers.
    """
    for key in merged:
        name = OmegaConf.select(layer, f"{key}.name") if OmegaConf.get_type(merged, key) is Choice else None
        if name is not None:
            if name != merged[key].name or key not in named:
                merged[key] = Choice(name)
            named.add(key)
    return merged


def to_yaml(cfg: Any) -> str:
    """A configuration with every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))
