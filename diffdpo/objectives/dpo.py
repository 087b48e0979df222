"""Flow-DPO (Liu et al. 2025, VideoAlign, with constant beta), after Diffusion-DPO (Wallace et al. 2023, eq. 14)."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from diffdpo.checks import check_range
from diffdpo.objectives.composition import pair_errors, term_needs, term_takes
from diffdpo.objectives.links import LinkChoice, build_link, link_choice
from diffdpo.objectives.metrics import pair_metrics
from diffdpo.objectives.terms.margin import AutoBeta, Reduction, SoftLabel, elements, implicit_rewards
from diffdpo.objectives.terms.restraints import Anchor, Safeguard
from diffdpo.objectives.terms.weights import Span, TimestepWeight
from diffdpo.types import BatchKind, LossOutput, ObjectiveState, Outputs, PerExample


@dataclass(frozen=True)
class DPO:
    """Push the winner's error down *relative to the reference*, and the loser's up.

    A song's implicit reward is h = (beta/2) (reference's error - policy's error), the margin z is the winner's less
    the loser's, the plain loss -log sigmoid(z). Errors are means over latent elements, whatever a song's length.
    """

    batch_kind: ClassVar[BatchKind] = "pair"
    beta: float = 2000.0
    link: LinkChoice = field(default_factory=partial(link_choice, "sigmoid"))
    """From the rewards of winner and loser to the loss; see Links."""
    reduction: Reduction = "mean"
    """mean: beta is per latent element; per_frame and sum: beta is per song, and must fall with its length."""
    timestep: TimestepWeight = field(default_factory=TimestepWeight)
    span: Span | None = None
    soft_label: SoftLabel = field(default_factory=SoftLabel)
    safeguard: Safeguard | None = None
    anchor: Anchor = field(default_factory=Anchor)
    auto_beta: AutoBeta = field(default_factory=AutoBeta)
    needs = property(lambda self: term_needs(self, "reference"))
    takes = property(term_takes)
    update = property(lambda self: self.auto_beta.update)

    def __post_init__(self) -> None:
        check_range(self, "beta", above=0)
        object.__setattr__(self, "link", link_choice(self.link))

    def __call__(self, outputs: Outputs) -> LossOutput:
        beta, link = self.auto_beta(self.beta, outputs.state), build_link(self.link)
        span_outputs, scale = pair_errors(outputs, self.span, self.safeguard)
        changes = self.timestep(outputs) * elements(self.reduction, outputs) * implicit_rewards(span_outputs)
        rewards = beta / 2 * changes
        reward = (self.soft_label.certainty(outputs) * rewards).unbind(1)
        loss = self.soft_label(lambda better, worse: link(reward[better], reward[worse], beta), outputs)
        margin, change = rewards[:, 0] - rewards[:, 1], changes[:, 0] - changes[:, 1]
        metrics = {**pair_metrics(outputs, margin), **self.auto_beta.metrics(change, beta), **scale}
        return self.anchor(LossOutput(loss=loss, metrics=metrics), outputs, rewards[:, 0])

    def kl_coefficient(self, state: ObjectiveState, frames: PerExample, channels: int) -> PerExample:
        """Coefficient of the KL divergence, per nat, that beta stands for with songs of this size (theory/beta)."""
        sizes = {"mean": frames * channels, "per_frame": frames * 0 + channels, "sum": frames * 0 + 1}
        return self.auto_beta(self.beta, state) / (2 * sizes[self.reduction])
