"""The values of a run of training: what it consists of, and what it carries from step to step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from diffdpo.data.datasets.stream import Examples
from diffdpo.models.base import SongModel
from diffdpo.models.frame_shards import FrameShards
from diffdpo.training.config import TrainConfig
from diffdpo.training.references import ErrorCache
from diffdpo.training.spikes import SpikeHistory
from diffdpo.training.step import AuxiliaryPolicy
from diffdpo.training.throughput import ThroughputMeter
from diffdpo.training.validation_rule import BestStep
from diffdpo.types import Objective


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that a run of training consists of, prepared by accelerate."""

    accelerator: Accelerator
    model: SongModel
    policy: Any
    reference: AuxiliaryPolicy | None
    old: AuxiliaryPolicy | None = None
    cache: ErrorCache | None = None
    objective: Objective
    optimizer: Any
    ema: EMAModel | None
    examples: Examples
    cfg: TrainConfig
    seed: int
    shards: FrameShards | None = None
    """The processes that share this one's songs."""
    folder: Path
    fingerprint: dict[str, Any]
    """What identifies the run: a checkpoint with another fingerprint is refused."""
    meter: ThroughputMeter = field(default_factory=ThroughputMeter)


@dataclass(frozen=True, kw_only=True)
class LoopState:
    """What the loop carries from step to step besides weights and moments; in the manifest of every checkpoint."""

    objective: Mapping[str, float] = field(default_factory=dict)
    """The state of the objective."""
    spikes: SpikeHistory = field(default_factory=SpikeHistory)
    best: BestStep = field(default_factory=BestStep)

    def entries(self) -> dict[str, Any]:
        """The state as entries of a manifest."""
        return {
            "running": dict(self.objective),
            "spikes": asdict(self.spikes),
            "validation": self.best.entries(),
        }

    @staticmethod
    def restore(manifest: Mapping[str, Any]) -> "LoopState":
        """The state in a manifest; entries that older versions did not write are as at the start."""
        return LoopState(
            objective=manifest.get("running", {}),
            spikes=SpikeHistory.restore(manifest.get("spikes", {})),
            best=BestStep.restore(manifest.get("validation", {})),
        )


@contextmanager
def averaged_weights(training: Training) -> Iterator[None]:
    """The policy with the moving average of its weights inside the `with`, if the run has one."""
    if training.ema is None:
        yield
        return
    bare = training.accelerator.unwrap_model(training.policy)
    parameters = [parameter for parameter in bare.parameters() if parameter.requires_grad]
    training.ema.store(parameters)
    training.ema.copy_to(parameters)
    try:
        yield
    finally:
        training.ema.restore(parameters)
