"""The configuration of training; its values are checked before the first step."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffdpo.checks import check_number, check_range
from diffdpo.errors import ConfigError, ensure
from diffdpo.flow import Timesteps
from diffdpo.runs import MANIFEST, read_json
from diffdpo.training.checkpointing import CheckpointingConfig
from diffdpo.training.validation_config import ValidationConfig
from diffdpo.types import Objective


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the transformer's linear layers; everything else is frozen."""

    rank: int = 16
    alpha: float = 16.0
    targets: list[str] | None = None
    """Dotted suffixes of layers, as peft matches them (`q_proj`, `to_out.0`); by default those the model names."""
    peft: dict[str, Any] = field(default_factory=dict)
    """Other fields of peft's LoraConfig under their own names: `use_dora: true`, `use_rslora`, `rank_pattern`,
    `alpha_pattern`, `exclude_modules`, `init_lora_weights`, `lora_dropout` (for objectives on single songs)."""

    def __post_init__(self) -> None:
        for name, own_name in (("r", "rank"), ("lora_alpha", "alpha"), ("target_modules", "targets")):
            ensure(name not in self.peft, f"lora.peft.{name}: set lora.{own_name}")
        check_range(self, "rank", low=1, prefix="lora.")
        check_range(self, "alpha", above=0, prefix="lora.")
        ensure(
            self.targets is None or (bool(self.targets) and all(self.targets)),
            f"lora.targets must name layers, or be null for those of the model, got {self.targets}",
        )


@dataclass(frozen=True)
class InpaintConfig:
    """Span masking: the model sees the song outside a span and is trained on the span."""

    min_fraction: float = 0.7
    max_fraction: float = 1.0

    def __post_init__(self) -> None:
        ensure(
            0 < self.min_fraction <= self.max_fraction <= 1,
            "inpaint fractions must satisfy 0 < min_fraction <= max_fraction <= 1, "
            f"got {self.min_fraction} and {self.max_fraction}",
        )


@dataclass(frozen=True)
class ReferenceConfig:
    """An auxiliary policy: where its weights come from, and whether they follow the trained policy's."""

    kind: Literal["auto", "adapter_off", "frozen_copy", "ema", "synced"] = "auto"
    """auto: the policy with its adapters off when there are any, which costs no memory; else a frozen copy. ema: a
    moving average of the policy (Linear-DPO, NFT's old policy). synced: the policy as it was some steps ago."""
    dtype: Literal["same", "bf16", "fp16", "fp32"] = "same"
    """Precision of a frozen copy. In another dtype than the policy's the first margins are not exactly zero."""
    offload: bool = False
    """Keep a frozen copy on the CPU between forward passes."""
    decay: float = 0.995
    """Decay of `ema`."""
    ramp: float = 0.0
    """Warm-up of `ema`: with r > 0 the decay after step s is min(r s, decay); DiffusionNFT's is 0.001 up to 0.5."""
    every: int = 40
    """Steps between two updates of `synced`."""
    cached_draws: int = 0
    """With K > 0 each example is seen with K fixed draws of timestep, noise and dropped conditions, and the
    reference's errors are remembered. Worth it when examples come round more than K times: one forward pass in
    three is saved from then on. For a reference that does not move, and objectives that need only its errors."""

    def __post_init__(self) -> None:
        check_range(self, "decay", "ramp", low=0, below=1, prefix="reference.")
        check_range(self, "every", low=1, prefix="reference.")
        check_range(self, "cached_draws", low=0, prefix="reference.")
        if self.cached_draws and self.kind in ("ema", "synced"):
            raise ValueError("reference.cached_draws needs a reference that does not move")
        if self.kind != "frozen_copy" and (self.dtype != "same" or self.offload):
            raise ValueError("reference.dtype and reference.offload are about kind=frozen_copy")


@dataclass(frozen=True)
class SpikeConfig:
    """The guard against spikes: a step whose loss or gradient norm lies far above those of the last steps is not
    taken. Compared are values of steps that were taken, so a spike does not hide the next one."""

    window: int = 50
    """Steps that a step is compared with. Before half of them are there, only values that are not finite are
    skipped."""
    threshold: float = 10.0
    """Standard deviations above the median, estimated by the median absolute deviation, and at least 5 % of the
    median."""
    max_in_row: int = 5
    """More skipped steps in a row end the run with an error."""

    def __post_init__(self) -> None:
        check_range(self, "window", low=4, prefix="train.spike.")
        check_range(self, "threshold", above=0, prefix="train.spike.")
        check_range(self, "max_in_row", low=0, prefix="train.spike.")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. `global_batch` is mathematics; `per_device` is a memory knob that moves nothing else."""

    steps: int = 1000
    global_batch: int = 8
    """Examples (songs or pairs) an optimiser step, over all processes and accumulation."""
    per_device: int = 8
    """Examples a micro-batch on each process. Accumulation follows from the two."""
    frames_per_device: int = 0
    """Frames of songs that a process computes at once, at most: examples of a micro-batch run in passes of so many,
    and a longer pair or group goes through backward song by song (see `split_backward`). 0: one example at a time
    on a CPU, where several cores share short songs better together: set frames of a whole micro-batch for songs of
    ten seconds. On a GPU as many of one length as make 8,192 frames."""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """How several processes share the work. auto: as the launcher says, with a configuration of accelerate for DDP,
    DeepSpeed or FSDP2; DDP under torchrun. fsdp2: weights, gradients and moments are sharded, by torch."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: the moments of AdamW in 8 bits (torchao, on any device), a quarter of their memory; not under
    DeepSpeed or FSDP2."""
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up; linear and cosine end at zero at `steps`."""
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    grad_clip: float = 1.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the forward pass. Errors are reduced and parameters updated in fp32 in every case."""
    gradient_checkpointing: bool = False
    """Short for `checkpointing: {}`, every block in full."""
    checkpointing: CheckpointingConfig | None = None
    """Compute activations again in the backward pass instead of keeping them; null keeps them."""
    split_backward: bool = False
    """One song at a time through backward: a pair needs the memory of its longer song, for one more forward
    pass of the shorter. The gradient is the same, but for rounding."""
    context_parallel: int = 1
    """Processes that share each song, for songs that do not fit one device: its frames are divided among them."""
    compile: bool = False
    """The transformer's blocks with torch.compile: up to a minute of waiting, then faster steps."""
    lora: LoraConfig | None = None
    """None trains every parameter."""
    base: Literal["full", "bf16", "int8", "nf4"] = "full"
    """Weights of the blocks below the adapters. bf16: half of fp32's memory, on any device, computed in the
    precision of `train.precision`. int8: a quarter (torchao, on any device). nf4: an eighth (bitsandbytes, CUDA
    only; not measured by us)."""
    weights: Literal["fp32", "bf16_master", "bf16_stochastic"] = "fp32"
    """Weights that are trained, where all are; bf16 with `train.precision=bf16`. bf16_master: the optimiser updates
    copies in fp32, of which they are the rounded values. bf16_stochastic: no copies, updates are rounded up or down
    by chance."""
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    """The policy that preferences are measured against."""
    old: ReferenceConfig = field(default_factory=ReferenceConfig)
    """The policy that sampled the songs, for NFT and AWM: those at the start of the run, unless they follow."""
    ema: float = 0.0
    """Decay of the moving average of the trained weights that is exported; 0 keeps none."""
    timesteps: Timesteps = field(default_factory=Timesteps)
    dropout: dict[str, float] = field(default_factory=dict)
    """Probability, for each part of the condition, that an example is trained without it; `context` is what
    in-painting shows of the song."""
    inpaint: InpaintConfig | None = None
    validation: ValidationConfig | None = None
    """Losses on held-out examples and songs of fixed prompts during the training; null for none."""
    spike: SpikeConfig | None = None
    """Skip updates of steps whose loss or gradient norm spikes; null takes every step. Not under DeepSpeed."""
    time_bins: int = 4
    """Errors, margins and gradient factors are logged for so many intervals of t as well; 0 for none."""
    save_every: int = 100
    keep_checkpoints: int = 1
    log_every: int = 1
    workers: int = 0
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Names of accelerate trackers: tensorboard, wandb, trackio, … metrics.jsonl is always written."""
    matmul_share: bool | None = None
    """Log the share of the rate of matrix products that the device attains, which costs some seconds at the start;
    null: on a GPU only."""
    profile: bool = False
    """Write a profile of the third step of the run: profile.txt, profile.json and profile_trace.json."""

    def __post_init__(self) -> None:
        counts = ("steps", "global_batch", "per_device", "save_every", "keep_checkpoints", "log_every")
        check_range(self, "context_parallel", low=1, prefix="train.")
        check_range(self, *counts, low=1, prefix="train.")
        check_range(self, "learning_rate", above=0, prefix="train.")
        check_range(self, "grad_clip", above=0, high=math.inf, prefix="train.")
        sizes = ("warmup_steps", "frames_per_device", "weight_decay", "workers", "time_bins")
        check_range(self, *sizes, low=0, prefix="train.")
        check_range(self, "ema", low=0, below=1, prefix="train.")
        if self.gradient_checkpointing and self.checkpointing is not None:
            raise ValueError(
                "train.gradient_checkpointing is short for train.checkpointing={}; set one of them"
            )
        self._check_rates()

    def _check_rates(self) -> None:
        if self.old.cached_draws:
            raise ValueError("train.old.cached_draws: only the reference's errors can be cached")
        for part, probability in self.dropout.items():
            check_number(probability, f"train.dropout.{part}", low=0, high=1)
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"train.betas must be two numbers in [0, 1), got {self.betas}")


def checkpointing_of(cfg: TrainConfig) -> CheckpointingConfig | None:
    """The checkpointing of a configuration, whichever way it is written."""
    return CheckpointingConfig() if cfg.gradient_checkpointing else cfg.checkpointing


def check_slider(cfg: TrainConfig, objective: Objective) -> None:
    """ConfigError for a slider that is no adapter, cannot have a strength, or is compared with what moves."""
    if "contrast" not in objective.needs:
        return
    if cfg.lora is None:
        raise ConfigError("a slider is an adapter with a strength; set train.lora.rank")
    if cfg.lora.peft.get("use_dora"):
        raise ConfigError(
            "train.lora.peft.use_dora: a DoRA's change is not proportional to its strength, so it is no slider; "
            "leave it out"
        )
    if cfg.reference.kind in ("ema", "synced"):
        raise ConfigError(
            f"train.reference.kind={cfg.reference.kind}: a slider's target is the network without the adapter; "
            "leave it out"
        )


def check_backend(zero_stage: int, *, fsdp2: bool, offload: bool) -> None:
    """ValueError for two backends at once, and for an offload that none has."""
    ensure(not (fsdp2 and zero_stage), "FSDP2 and ZeRO exclude each other; choose one")
    ensure(
        not offload or fsdp2 or zero_stage >= 2,
        "only ZeRO-2, ZeRO-3 and FSDP2 offload to the CPU; choose one of them",
    )


def data_world(cfg: TrainConfig, world: int) -> int:
    """The number of groups of processes with songs of their own. ConfigError for processes that are left over."""
    groups, remainder = divmod(world, cfg.context_parallel)
    if remainder:
        raise ConfigError(
            f"train.context_parallel={cfg.context_parallel} needs a multiple of {cfg.context_parallel} processes, "
            f"this run has {world}; launch as many by `accelerate launch`, or leave it out"
        )
    return groups


FREE_TO_CHANGE = (
    "steps", "per_device", "frames_per_device", "save_every", "keep_checkpoints", "log_every", "workers",
    "trackers", "gradient_checkpointing", "checkpointing", "split_backward", "time_bins", "compile", "strategy",
    "context_parallel", "validation.every", "validation.patience", "validation.tracker_songs", "validation.result",
    "matmul_share", "profile",
)  # fmt: skip
"""Keys of `train` that a resumed run may have changed: none of them moves the trajectory, but for `steps` under a
schedule that ends at zero."""
EXPORT = "export"
"""Folder of a checkpoint with the weights that other programs load: an adapter, or a whole network."""


def free_keys(cfg: TrainConfig) -> list[str]:
    """The keys of `train` that a resumed run of this configuration may have changed.

    Under schedules linear and cosine the learning rate of every step depends on `steps`.
    """
    return [key for key in FREE_TO_CHANGE if key != "steps" or cfg.schedule == "constant"]


def export_folder(out: Path, steps: int) -> Path:
    """The folder of the weights after the last step of a run."""
    return out / "checkpoints" / f"step-{steps:08d}" / EXPORT


def result_folder(out: Path) -> Path:
    """The folder of the weights that are the result of a finished run: the last step's, or the best step's."""
    manifest = read_json(out / MANIFEST)
    return out / manifest["result"] if "result" in manifest else export_folder(out, int(manifest["steps"]))
