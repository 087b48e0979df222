"""Preference pairs of songs in memory as training examples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffdpo.data.datasets.pairs import PairExample, collate_pairs
from diffdpo.inputs import digest
from diffdpo.mining.values import Pair
from diffdpo.types import Batch, Row


@dataclass(frozen=True, eq=False)
class PairsInMemory:
    """Pairs of song ids, with the latents and the row of condition of each song."""

    pairs: Sequence[Pair]
    latents: Mapping[str, Float[Tensor, "_ channel"]]
    rows: Mapping[str, Row]
    frames_per_second: float

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def has_spans(self) -> bool:
        """Whether any pair has spans."""
        return any(pair.spans for pair in self.pairs)

    @property
    def has_soft_labels(self) -> bool:
        """Whether any pair has a soft label below 1."""
        return any(pair.soft_label != 1.0 for pair in self.pairs)

    @property
    def digest(self) -> str:
        """Identity of pairs and latents."""
        latents = {name: value.float().cpu().numpy() for name, value in sorted(self.latents.items())}
        return digest([[_content_of(pair) for pair in self.pairs], latents])

    def example(self, index: int, position: int) -> PairExample:
        """The pair at `index`."""
        pair = self.pairs[index]
        rows = (self.rows[pair.winner], self.rows[pair.loser])
        return PairExample(
            winner=self.latents[pair.winner],
            loser=self.latents[pair.loser],
            rows=rows,
            reference_rows=rows,
            id=f"{pair.winner}|{pair.loser}",
            soft_label=pair.soft_label,
            axis=pair.axis,
            spans=pair.spans,
        )

    def collate(self, examples: Sequence[PairExample], positions: Sequence[int]) -> Batch:
        """A batch of pairs; see `collate_pairs`."""
        return collate_pairs(examples, positions, epoch=len(self), frames_per_second=self.frames_per_second)


def _content_of(pair: Pair) -> dict[str, Any]:
    """The fields of a pair; without those about songs of a data set for a pair of samples, as in older versions."""
    fields = asdict(pair)
    return (
        fields if pair.is_real else {k: v for k, v in fields.items() if k not in ("is_real", "winner_start")}
    )
