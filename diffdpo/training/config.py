"""The knobs of training, each with its meaning; checked before the first step."""

from dataclasses import dataclass, field
from typing import Any, Literal

from diffdpo.flow import Timesteps


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the transformer's linear layers; everything else is frozen."""

    rank: int = 16
    alpha: float = 16.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}")


@dataclass(frozen=True)
class InpaintConfig:
    """Span masking: the model sees the song outside a span and is trained on the span."""

    min_fraction: float = 0.7
    max_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.min_fraction <= self.max_fraction <= 1:
            raise ValueError("inpaint fractions must satisfy 0 < min_fraction <= max_fraction <= 1")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. `global_batch` is mathematics; `per_device` is a memory knob that moves nothing else."""

    steps: int = 1000
    global_batch: int = 8
    """Examples (songs or pairs) an optimiser step, over all processes and accumulation."""
    per_device: int = 8
    """Examples a forward pass on each process. Accumulation follows from the two."""
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up; linear and cosine end at zero at `steps`."""
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    grad_clip: float = 1.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Of the forward pass. Errors are reduced in fp32 and parameters updated in fp32 whatever it is."""
    gradient_checkpointing: bool = False
    lora: LoraConfig | None = None
    """None trains every parameter."""
    reference: Literal["auto", "adapter_off", "frozen_copy"] = "auto"
    """auto: the policy with its adapters off when there are any, which costs no memory; else a frozen copy."""
    ema: float = 0.0
    """Decay of the moving average of the trained weights that is exported; 0 keeps none."""
    timesteps: Timesteps = field(default_factory=Timesteps)
    dropout: dict[str, float] = field(default_factory=dict)
    """Probability, for each part of the condition, that an example is trained without it."""
    inpaint: InpaintConfig | None = None
    save_every: int = 100
    keep_checkpoints: int = 1
    log_every: int = 1
    workers: int = 0
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Names of accelerate trackers: tensorboard, wandb, trackio, … metrics.jsonl is always written."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "per_device", "save_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "grad_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"train.{name} must be positive, got {getattr(self, name)}")
        for part, probability in self.dropout.items():
            if not 0 <= probability <= 1:
                raise ValueError(f"train.dropout.{part} must be in [0, 1], got {probability}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"train.ema must be in [0, 1), got {self.ema}")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"train.betas must be two numbers in [0, 1), got {self.betas}")


FREE_TO_CHANGE = (
    "steps", "per_device", "save_every", "keep_checkpoints", "log_every", "workers", "trackers",
    "gradient_checkpointing",
)  # fmt: skip
"""Keys of `train` that a resumed run may have changed: none of them moves the trajectory."""


def asdict_shallow(config: Any) -> dict[str, Any]:
    """The fields of a dataclass by name."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}
