"""The processes of a run, as far as a checkpoint's format depends on them.

Plain processes and DistributedDataParallel write the same files, whatever their number. FSDP2 writes whole tensors
that any number of processes under FSDP2 can load. DeepSpeed writes a file a process, in the form of its ZeRO stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffdpo.errors import CheckpointError
from diffdpo.training.strategy import distributed_name, zero_stage


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many processes train, and how they share the work."""

    world: int
    distributed: str
    """FSDP2, or accelerate's name of the kind: NO, MULTI_CPU, MULTI_GPU, DEEPSPEED, …"""
    zero_stage: int = 0

    @property
    def is_portable(self) -> bool:
        """Whether any number of processes can load what these write."""
        return self.distributed == "NO" or self.distributed.startswith("MULTI_")

    @property
    def description(self) -> str:
        """`ZeRO-2 on 2 processes`, `1 process`."""
        count = f"{self.world} process{'es' if self.world > 1 else ''}"
        if self.distributed == "DEEPSPEED":
            return f"ZeRO-{self.zero_stage} on {count}"
        return count if self.is_portable else f"{self.distributed} on {count}"


def layout_of(accelerator: Accelerator) -> Layout:
    """The layout of this run."""
    return Layout(
        world=accelerator.num_processes,
        distributed=distributed_name(accelerator),
        zero_stage=zero_stage(accelerator),
    )


def can_load(layout: Layout, writer: Layout) -> bool:
    """Whether a run of one layout can load what one of another wrote."""
    is_resharded = layout.distributed == writer.distributed == "FSDP2"
    return layout == writer or is_resharded or (writer.is_portable and layout.is_portable)


def check_layout(checkpoint: Path, manifest: Mapping[str, Any], layout: Layout) -> None:
    """CheckpointError unless a run of this layout can load the checkpoint with this manifest.

    A manifest of an older version, which names no layout, passes.
    """
    if "world" not in manifest or "distributed" not in manifest:
        return
    writer = Layout(
        world=int(manifest["world"]),
        distributed=str(manifest["distributed"]),
        zero_stage=int(manifest.get("zero_stage", 0)),
    )
    if not can_load(layout, writer):
        raise CheckpointError(
            f"{checkpoint}: written with {writer.description}, this run has {layout.description}; "
            "launch it as before, or begin a run from its export"
        )
