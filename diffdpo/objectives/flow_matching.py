"""Conditional flow matching (Lipman et al. 2022, eq. 9), the objective of supervised training."""

from dataclasses import dataclass
from typing import ClassVar

from diffdpo.types import BatchKind, LossOutput, Need, Outputs


@dataclass(frozen=True)
class FlowMatching:
    """The squared velocity error of a song, averaged over its valid frames and all channels."""

    batch_kind: ClassVar[BatchKind] = "song"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, outputs: Outputs) -> LossOutput:
        return LossOutput(loss=outputs.policy[:, 0])
