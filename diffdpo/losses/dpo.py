"""Flow-DPO (Liu et al. 2025, VideoAlign, with constant beta), after Diffusion-DPO (Wallace et al. 2023, eq. 14)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffdpo.types import BatchKind, LossOutput, Need, Outputs


@dataclass(frozen=True)
class DPO:
    """-log sigmoid(margin): push the winner's error down *relative to the reference*.

    margin = -(beta/2) [(policy_w - reference_w) - (policy_l - reference_l)], one a pair, where each term is a
    mean squared velocity error per latent element. So beta is per element, not per song: the length of the
    song does not change it. (diffusers and MR-FlowDPO write beta without the half: theirs is half of ours.)
    """

    batch_kind: ClassVar[BatchKind] = "pair"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})

    beta: float = 2000.0
    label_smoothing: float = 0.0
    """Fraction of pairs believed to be labelled the wrong way round (cDPO); 0 is plain DPO."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")

    def __call__(self, outputs: Outputs) -> LossOutput:
        logit = margin(outputs, self.beta)
        certainty = 1.0 if outputs.soft_label is None else outputs.soft_label
        keep = certainty * (1 - self.label_smoothing) + (1 - certainty) * self.label_smoothing
        loss = -keep * F.logsigmoid(logit) - (1 - keep) * F.logsigmoid(-logit)
        return LossOutput(loss=loss, metrics=pair_metrics(outputs, logit))


def gains(outputs: Outputs) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """How far the policy's error lies below the reference's, for winner and loser."""
    assert outputs.reference is not None, "the objective did not declare that it needs the reference"
    winner, loser = (outputs.reference - outputs.policy).unbind(1)
    return winner, loser


def margin(outputs: Outputs, beta: float) -> Float[Tensor, " pair"]:
    """The implicit reward of the winner over the loser, in logits."""
    winner, loser = gains(outputs)
    return beta / 2 * (winner - loser)


def pair_metrics(outputs: Outputs, logit: Float[Tensor, " pair"]) -> Mapping[str, Float[Tensor, " pair"]]:
    """What to watch: accuracy alone hides that both errors can rise, the loser's only faster."""
    winner, loser = gains(outputs)
    logit = logit.detach()
    return {
        "margin": logit,
        "accuracy": (logit > 0).float(),
        "winner_gain": winner.detach(),
        "loser_gain": loser.detach(),
        "winner_error": outputs.policy[:, 0].detach(),
        "loser_error": outputs.policy[:, 1].detach(),
        "gradient_factor": (-logit).sigmoid(),
    }
