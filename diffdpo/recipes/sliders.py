"""The verb `sliders`: all sliders of a file, an adapter each, trained on shared songs and calibrated."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from diffdpo.config_paths import PATH
from diffdpo.data.sliders import read_sliders, slider_names
from diffdpo.errors import ConfigError
from diffdpo.names import file_stem
from diffdpo.progress import log
from diffdpo.recipes import calibrate, train
from diffdpo.recipes.calibrate import CALIBRATION, CalibrateRun
from diffdpo.recipes.own_songs import sample_neutrals
from diffdpo.recipes.train import TrainRun
from diffdpo.registry import Choice
from diffdpo.run_dir import dist_env, open_run
from diffdpo.runs import finish, read_json
from diffdpo.scorers.axes import check_axis_names
from diffdpo.training.config import FREE_TO_CHANGE

SLIDER_STAGES: dict[str, Callable[[], Any]] = {
    "train": lambda: TrainRun(out="", objective=Choice("slider")),
    "calibrate": lambda: CalibrateRun(out="", adapter="", prompts=""),
}
"""The default configuration of each stage."""
STAGE_KEYS = {"train": ("out",), "calibrate": ("out", "adapter", "model", "axes")}
"""The keys of each stage that this verb sets."""


@dataclass
class SlidersRun:
    """Train and calibrate every slider of a file. They are separate adapters, to be mixed at any strengths."""

    out: str = field(default=MISSING, metadata=PATH)
    train: TrainRun = field(default_factory=SLIDER_STAGES["train"])
    """Model, data.sliders, objective, and how to train. Set here: out, data.slider and data.samples."""
    calibrate: CalibrateRun = field(default_factory=SLIDER_STAGES["calibrate"])
    """Prompts, strengths, scorers. Set here: out, adapter, model, axes. Without prompts nothing is calibrated."""
    axes: dict[str, list[str]] = field(default_factory=dict)
    """What each slider is for: axes or measures of the sound, by its name."""

    def __post_init__(self) -> None:
        for stage, names in STAGE_KEYS.items():
            default, cfg = SLIDER_STAGES[stage](), getattr(self, stage)
            for name in names:
                if getattr(cfg, name) != getattr(default, name):
                    raise ValueError(f"{stage}.{name} is set for each slider; leave it out")
        if self.train.data.slider:
            raise ValueError("train.data.slider is set for each slider; for one of them use `diffdpo train`")

    def check_parts(self) -> None:
        """ConfigError for a part, an axis or a slider that does not exist, before anything is loaded."""
        self.train.check_parts()
        replace(self.calibrate, model=self.train.model).check_parts()
        if self.train.objective.name != "slider":
            raise ConfigError(
                f"train.objective.name={self.train.objective.name}: sliders are trained by slider"
            )
        if not self.train.data.sliders:
            raise ConfigError("train.data.sliders: name a file of sliders")
        names = slider_names(Path(self.train.data.sliders))
        for name, axes in self.axes.items():
            check_axis_names(axes, f"axes.{name}", calibrate.SOUND_AXES)
            if name not in names:
                raise ConfigError(f"axes.{name}: no slider of this name. Known: {', '.join(names)}.")


def run(cfg: SlidersRun) -> Path:
    """Train and calibrate the sliders that are not finished."""
    data, model, dist = cfg.train.data, cfg.train.model, dist_env()
    sliders = Path(data.sliders)
    free = ["calibrate", "axes", *(f"train.train.{key}" for key in FREE_TO_CHANGE if key != "steps")]
    with open_run(cfg, free=free, dist=dist) as out:
        samples = data.samples or str(
            sample_neutrals(read_sliders(sliders), cfg.train.own_songs, model, cfg.train.seed, out)
        )
        sentences: dict[str, list[str]] = {}
        for name in slider_names(sliders):
            log(f"slider {name}", visible=dist.main)
            folder = out / file_stem(name)
            own_data = replace(data, slider=name, samples=samples)
            train.run(replace(cfg.train, out=str(folder), data=own_data))
            if not cfg.calibrate.prompts:
                continue
            scale = calibrate.run(
                replace(
                    cfg.calibrate,
                    out=str(out / f"{file_stem(name)}-scale"),
                    adapter=str(folder),
                    model=model,
                    axes=cfg.axes.get(name, []),
                )
            )
            responses = read_json(scale / CALIBRATION)["responses"]
            sentences[name] = [row["sentence"] for row in responses if row["axis"] in cfg.axes.get(name, [])]
        if dist.main:
            finish(out, sliders=slider_names(sliders), calibration=sentences, world=dist.count)
        dist.barrier()
    return out
