"""Training on a union of axes: each pair tells the policy which axis it was chosen on."""

from collections.abc import Sequence
from dataclasses import replace

from diffdpo.data.datasets.pairs import PairExample, Pairs
from diffdpo.errors import DataError
from diffdpo.randomness import draw_uniform
from diffdpo.types import Batch


class AxisPairs:
    """Pairs whose prompts carry the axis the pair was chosen on, left out with a probability.

    So one model learns every axis apart, to be asked for in a prompt (`axis`), and their union, for prompts that
    ask for none.
    """

    def __init__(self, pairs: Pairs, *, dropout: float, seed: int) -> None:
        self.pairs, self.dropout, self.seed, self.axes = pairs, dropout, seed, pairs.axes
        if not pairs.axes:
            raise DataError(
                f"{pairs.path}: no pair names an axis; mine with a rule that chooses on single axes, or leave "
                "data.axis_condition out"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def example(self, index: int, position: int) -> PairExample:
        example = self.pairs.example(index, position)
        dropped = float(draw_uniform(self.seed, [position], "drop-axis")) < self.dropout
        axis = "" if dropped else example.axis
        return replace(example, prompt=replace(example.prompt, axis=axis))

    def collate(self, examples: Sequence[PairExample], positions: Sequence[int]) -> Batch:
        return self.pairs.collate(examples, positions)
