"""The command `estimate`: the memory of a training run on each device, before anything is loaded or allocated."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError
from diffdpo.parts import build_objective, check_model
from diffdpo.recipes.train import TrainRun
from diffdpo.registry import Choice
from diffdpo.training.config import check_backend
from diffdpo.types import Embedding, Prompt

if TYPE_CHECKING:
    from diffdpo.models.base import SongModel
    from diffdpo.training.estimate import MemoryEstimate


@dataclass(frozen=True)
class EstimateSettings:
    """The length of the songs and the machines of an estimate."""

    seconds: float = 0.0
    """Length of the songs; 0: the longest that the model takes."""
    processes: int = 1
    zero_stage: int = 0
    group_size: int = 4
    """Songs of an example, for objectives on groups."""
    fsdp2: bool = False
    """Sharded by torch's FSDP2 instead of DeepSpeed."""
    offload: bool = False
    """The optimiser's state on the CPU; under ZeRO-3 and FSDP2 the weights too."""

    def __post_init__(self) -> None:
        check_range(self, "seconds", low=0)
        check_range(self, "processes", "group_size", low=1)
        check_range(self, "zero_stage", low=0, high=3)
        check_backend(self.zero_stage, fsdp2=self.fsdp2, offload=self.offload)


def estimate(cfg: TrainRun, settings: EstimateSettings) -> "MemoryEstimate":
    """The memory of this training run. ConfigError for a length that the model does not take."""
    from diffdpo.training.estimate import Deployment, estimate_memory
    from diffdpo.training.session import check_config

    model, embedding = sketch_model(cfg.model)
    check_config(cfg.train, model)
    spec = model.spec
    frames = spec.frames(settings.seconds) if settings.seconds else spec.max_frames
    if frames > spec.max_frames:
        longest_s = spec.max_frames / spec.frames_per_second - spec.headroom_s
        raise ConfigError(
            f"--seconds {settings.seconds:g}: this model takes songs of {longest_s:.0f} s at most"
        )
    deployment = Deployment(
        settings.processes, settings.zero_stage, settings.group_size, settings.fsdp2, settings.offload
    )
    return estimate_memory(model, embedding, build_objective(cfg.objective), cfg.train, frames, deployment)


def sketch_model(choice: Choice) -> "tuple[SongModel, Embedding]":
    """A model whose weights need not exist, and the embedding of a prompt.

    A model's configuration may have `sketch()`, which gives both without any file; another model is loaded.
    """
    part = check_model(choice)
    if hasattr(part, "sketch"):
        return part.sketch()
    model = part.load()
    return model, model.embed(Prompt(id="estimate", text="a song", duration_s=1.0, lyrics=""))
