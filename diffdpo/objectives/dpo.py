"""Flow-DPO (Liu et al. 2025, VideoAlign, with constant beta), after Diffusion-DPO (Wallace et al. 2023, eq. 14).

One margin, any link, and the remedies against a winner whose error rises: anchors and the SDPO safeguard.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.objectives.terms.link import LINKS, LinkOptions
from diffdpo.objectives.terms.margin import (
    Reduction,
    TimestepWeight,
    elements,
    frame_weights,
    masked_square,
    pair_metrics,
    present,
    timestep_weight,
    weighted,
)
from diffdpo.objectives.terms.safeguard import attenuate, pair_scale
from diffdpo.types import BatchKind, LossOutput, Need, Outputs


@dataclass(frozen=True)
class DPO:
    """Push the winner's error down *relative to the reference*, and the loser's up.

    The implicit reward of a song is h = (beta/2) (reference's error - policy's error), the margin z is the
    winner's minus the loser's, and the plain loss is -log sigmoid(z). Errors are mean squared velocity errors
    per latent element, so beta is per element, not per song: the length of the song does not change it.
    (diffusers and MR-FlowDPO write beta without the half: theirs is half of ours.)
    """

    batch_kind: ClassVar[BatchKind] = "pair"

    beta: float = 2000.0
    link: str = "sigmoid"
    """From rewards to loss. One of sigmoid, robust, hinge, ipo, bco, nca, apo_zero, apo_down, exo, dmpo, sppo,
    discopop."""
    label_smoothing: float = 0.0
    """Fraction of pairs believed to be labelled the wrong way round (cDPO, robust, exo)."""
    anchor: float = 0.0
    """Weight of the winner's error itself (CRPO: TangoFlux, Hung et al. 2024, eq. 6, with 1; 0.1 elsewhere)."""
    reward_anchor: float = 0.0
    """Weight of the winner's reward, taken off the loss: an anchor in units of beta/2 and with the weight of the
    timestep, so that it keeps its share of the pull at every t and beta (docs/theory/objectives.md)."""
    winner_hinge: float = 0.0
    """Weight of max(0, winner's error - reference's), in units of beta/2 (DPOP: Pal et al. 2024, eq. 3)."""
    velocity_anchor: float = 0.0
    """Weight of the mean squared distance of the policy's velocities from the reference's, both songs."""
    safeguard: float | None = None
    """mu of Diffusion-SDPO: the loser is pushed so gently that the winner's error falls by mu of what it could."""
    timestep_weight: TimestepWeight = "constant"
    timestep_clip: float = 5.0
    """Of clipped_elbo."""
    segment: float = 0.0
    """Share of a song's error that is taken over the stretches its pair names, in [0, 1]; the rest is the whole
    song's. Pairs that name none are not changed."""
    reduction: Reduction = "mean"
    """mean: beta is per latent element; per_frame and sum: beta is per song, and must fall with its length."""
    target_factor: float = 0.0
    """0: beta is fixed. In (0, 0.5): after `fixed_steps` beta is set such that a margin of average size has this
    gradient factor sigmoid(-z), so that no pull saturates whatever the size of the model's errors."""
    fixed_steps: int = 50
    """Steps with the given beta first: where the policy equals its reference, any beta would do."""
    margin_decay: float = 0.99
    """Of the running mean of the margin's size."""
    beta_range: tuple[float, float] = (10.0, 20000.0)
    certainty_margin: bool = False
    """A soft label p scales the margin by 10 (2p - 1), as SmPO does, instead of mixing both orders."""

    def __post_init__(self) -> None:
        low, high = self.beta_range
        wrong = {
            f"beta must be positive, got {self.beta}": self.beta <= 0,
            f"link must be one of {', '.join(LINKS)}, got {self.link!r}": self.link not in LINKS,
            f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}": not 0
            <= self.label_smoothing
            < 0.5,
            f"safeguard must be in [0, 1], got {self.safeguard}": not 0 <= (self.safeguard or 0) <= 1,
            f"target_factor must be in [0, 0.5), got {self.target_factor}": not 0 <= self.target_factor < 0.5,
            f"margin_decay must be in [0, 1), got {self.margin_decay}": not 0 <= self.margin_decay < 1,
            f"beta_range must be two positive numbers in order, got {self.beta_range}": not 0 < low <= high,
            f"segment must be in [0, 1], got {self.segment}": not 0 <= self.segment <= 1,
            f"timestep_clip must be positive, got {self.timestep_clip}": self.timestep_clip <= 0,
            "anchors and winner_hinge must not be negative": min(
                self.anchor, self.reward_anchor, self.winner_hinge, self.velocity_anchor
            )
            < 0,
        }
        for complaint, applies in wrong.items():
            if applies:
                raise ValueError(complaint)
        if self.timestep_weight == "theory":
            warnings.warn(
                "timestep_weight=theory, (1-t)², leaves high noise all but unrestrained: expect reward hacking "
                "(VideoAlign, table 4); constant or clipped_elbo are safe",
                stacklevel=2,
            )

    @property
    def needs(self) -> frozenset[Need]:
        tensors = self.velocity_anchor > 0 or self.safeguard is not None or self.reduction == "sum"
        wanted: dict[Need, bool] = {
            "reference": True,
            "velocities": tensors,
            "frame_errors": self.segment > 0,
        }
        return frozenset(need for need, applies in wanted.items() if applies)

    def __call__(self, outputs: Outputs) -> LossOutput:
        policy, reference, held_back, frames = outputs.policy, present(outputs.reference), None, None
        if self.segment:
            frames, seen = frame_weights(outputs, self.segment), present(outputs.frame_errors)
            policy, reference = weighted(seen.policy, frames), weighted(present(seen.reference), frames)
        if self.safeguard is not None:
            held_back = pair_scale(outputs, self.safeguard, frames)
            policy = attenuate(policy, held_back)
        weight = timestep_weight(self.timestep_weight, self.timestep_clip, outputs.t)
        beta = self.beta_at(outputs.running)
        changes = weight * elements(outputs, self.reduction) * (reference - policy)
        rewards = beta / 2 * changes
        loss = self._preference(rewards, outputs.soft_label, beta)
        loss = loss + self.anchor * outputs.policy[:, 0] - self.reward_anchor * rewards[:, 0]
        if self.winner_hinge:
            loss = loss + self.winner_hinge * torch.relu(-rewards[:, 0])
        metrics = dict(pair_metrics(outputs, rewards[:, 0] - rewards[:, 1]))
        if self.target_factor:
            metrics["margin_size"] = (changes[:, 0] - changes[:, 1]).abs().detach()
            metrics["beta"] = torch.full_like(metrics["margin_size"], beta)
        if self.velocity_anchor:
            distance = self._distance(outputs)
            loss, metrics["velocity_distance"] = loss + self.velocity_anchor * distance, distance.detach()
        if held_back is not None:
            metrics["loser_scale"] = held_back
        return LossOutput(loss=loss, metrics=metrics)

    def beta_at(self, running: Mapping[str, float]) -> float:
        """The fixed beta, or -2 logit(target_factor) over the running size of the margin (SimpleTuner's)."""
        if not self.target_factor or running.get("steps", 0) < self.fixed_steps or not running["margin_size"]:
            return self.beta
        logit = math.log(self.target_factor / (1 - self.target_factor))
        low, high = self.beta_range
        return min(high, max(low, -2 * logit / running["margin_size"]))

    def kl_coefficient(
        self, running: Mapping[str, float], frames: Float[Tensor, " pair"], channels: int
    ) -> Float[Tensor, " pair"]:
        """The coefficient of the KL divergence, per nat, that beta stands for with songs of this size.

        The likelihood bound of a rectified flow weighs summed errors with (1 - t)/t; with a weight of about one
        and errors summed, the margin is beta_KL times a difference of log-likelihoods for beta_KL = beta / 2, and
        means divide by the number of elements (theory/beta).
        """
        elements = {"mean": frames * channels, "per_frame": frames * 0 + channels, "sum": frames * 0 + 1}
        return self.beta_at(running) / (2 * elements[self.reduction])

    def update(self, running: Mapping[str, float], means: Mapping[str, float]) -> Mapping[str, float]:
        """What the next step has to know of this one's means over all processes."""
        if not self.target_factor:
            return {}
        before = running.get("margin_size", means["margin_size"])
        size = self.margin_decay * before + (1 - self.margin_decay) * means["margin_size"]
        return {"steps": running.get("steps", 0) + 1, "margin_size": size}

    def _preference(
        self, rewards: Float[Tensor, "pair 2"], certainty: Float[Tensor, " pair"] | None, beta: float
    ) -> Float[Tensor, " pair"]:
        """The link, under both orders where the label is soft."""
        link, options = LINKS[self.link], LinkOptions(beta=beta, smoothing=self.label_smoothing)
        winner, loser = rewards.unbind(1)
        if certainty is None:
            return link(winner, loser, options)
        if self.certainty_margin:
            sure = 10 * (2 * certainty - 1)
            return link(sure * winner, sure * loser, options)
        return certainty * link(winner, loser, options) + (1 - certainty) * link(loser, winner, options)

    def _distance(self, outputs: Outputs) -> Float[Tensor, " pair"]:
        velocities = present(outputs.velocities)
        return masked_square(velocities.policy - present(velocities.reference), outputs).mean(1)
