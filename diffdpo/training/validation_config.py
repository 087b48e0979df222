"""The configuration of validation inside a training: what is measured, how often, and what follows from it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from diffdpo.checks import check_number, check_range, check_seed
from diffdpo.config_paths import INPUT_FILE, PATH
from diffdpo.errors import ensure
from diffdpo.sampling.config import SamplingConfig

LOWER_IS_BETTER = ("loss", "error", "winner_error", "winner_error_ratio", "seconds")
"""Metrics that fall when a model gets better; all others rise."""


@dataclass(frozen=True)
class ValidationConfig:
    """Validation inside a training: losses on held-out examples, and songs of fixed prompts and seeds, with and
    without what was trained. It changes no weight and no random number of the training."""

    every: int = 100
    """Steps between two validations; besides, before the first step and after the last."""
    fraction: float = 0.0
    """Share of the prompts of pairs or ratings, by a hash of their group, that is held out: it is not trained on,
    and losses are measured on it."""
    pairs: str = field(default="", metadata=PATH)
    """A second folder that `mine` wrote, in place of a share of the first."""
    split: str = ""
    """For data.songs, whose splits `prepare` made: the split that losses are measured on, such as valid."""
    times: list[float] = field(default_factory=list)
    """Times t at which losses are measured; by default 0.1, 0.3, 0.5, 0.7, 0.9, or those of a few-step network."""
    draws: int = 1
    """Noises for each example and time, the same at every validation."""
    batch: int = 8
    """Examples in one forward pass; the numbers do not depend on how many processes share the passes."""
    prompts: str = field(default="", metadata=INPUT_FILE)
    """A prompts.jsonl whose songs are sampled into `validation/` of the run directory."""
    per_prompt: int = 1
    """Songs for each prompt."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the songs are sampled."""
    seed: int = 0
    """Of the songs and of the noises."""
    audio: bool = True
    """Decode the songs; without, only latents are written."""
    tracker_songs: int = 4
    """Songs whose audio goes to the trackers as well, tensorboard and wandb."""
    scorers: list[Any] = field(default_factory=list)
    """Scorers of the songs, as names or {name: …, args: {…}}; `gain/AXIS` is the mean difference to the songs
    without what was trained, `score/AXIS` the mean."""
    metric: str = ""
    """The metric that decides which step is best: `loss` by default where examples are held out, `accuracy`,
    `winner_error_ratio`, `gain/harmony.key`, …"""
    direction: Literal["auto", "lower", "higher"] = "auto"
    """Which values are better. auto: lower for losses and errors, higher for all else."""
    min_delta: float = 0.0
    """Smallest change of the metric that counts as better."""
    patience: int = 0
    """Stop after so many validations in a row without a better value; 0 never stops."""
    keep: Literal["last", "best"] = "last"
    """best: the weights of the best step are kept beside the last checkpoints, as `checkpoints/best`."""
    result: Literal["last", "best"] = "last"
    """Which weights are the result of the training, for the stages of `round` after it."""

    def __post_init__(self) -> None:
        counts = ("every", "draws", "batch", "per_prompt")
        check_range(self, *counts, low=1, prefix="train.validation.")
        check_range(self, "min_delta", "patience", "tracker_songs", low=0, prefix="train.validation.")
        check_range(self, "fraction", low=0, below=1, prefix="train.validation.")
        check_seed(self, "seed")
        for t in self.times:
            check_number(t, "train.validation.times", above=0, high=1)
        ensure(
            not self.sampling.has_interventions,
            "train.validation.sampling: songs of the training are the network's own; leave knobs, steering and "
            "reward_guidance out",
        )
        self._check_data()
        self._check_choice()

    def _check_data(self) -> None:
        key = "train.validation"
        sources = [name for name in ("fraction", "pairs", "split") if getattr(self, name)]
        ensure(len(sources) < 2, f"{key}: {' and '.join(sources)} are two sources of examples; keep one")
        ensure(
            bool(sources or self.prompts),
            f"{key} measures nothing; set {key}.fraction or pairs for losses, or prompts for songs",
        )
        ensure(not self.scorers or bool(self.prompts), f"{key}.scorers need songs; set {key}.prompts")
        ensure(not self.scorers or self.audio, f"{key}.scorers need sound; set {key}.audio=true")

    def _check_choice(self) -> None:
        key = "train.validation"
        ensure(self.result == "last" or self.keep == "best", f"{key}.result=best needs {key}.keep=best")
        ensure(
            not self.selects or bool(self.best_metric),
            f"{key}: patience and keep=best need a metric; set {key}.metric, such as gain/harmony.key, or hold "
            f"examples out with {key}.fraction",
        )

    @property
    def holds_out(self) -> bool:
        """Whether losses are measured on held-out examples."""
        return bool(self.fraction or self.pairs or self.split)

    @property
    def selects(self) -> bool:
        """Whether the best step matters."""
        return self.patience > 0 or self.keep == "best"

    @property
    def best_metric(self) -> str:
        """The metric that decides which step is best; "" for none."""
        return self.metric or ("loss" if self.holds_out else "")

    @property
    def lower_is_better(self) -> bool:
        """Whether lower values of the metric are better."""
        if self.direction != "auto":
            return self.direction == "lower"
        return self.best_metric in LOWER_IS_BETTER
