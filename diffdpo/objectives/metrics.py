"""Metrics of the pairs of a step."""

from diffdpo.objectives.terms.margin import implicit_rewards
from diffdpo.types import LossMetrics, Outputs, PerExample


def pair_metrics(outputs: Outputs, margin: PerExample) -> LossMetrics:
    """Margin, and the errors it is made of: accuracy hides that both can rise, the loser's only faster.

    The gains are the reference's errors less the policy's, over whole songs; a pair is saturated where the gradient
    factor sigmoid(-margin) is below .05.
    """
    winner, loser = implicit_rewards(outputs).detach().unbind(1)
    margin = margin.detach()
    factor = (-margin).sigmoid()
    return {
        "margin": margin,
        "accuracy": (margin > 0).to(margin.dtype),
        "winner_gain": winner,
        "loser_gain": loser,
        "winner_error": outputs.policy[:, 0].detach(),
        "loser_error": outputs.policy[:, 1].detach(),
        "gradient_factor": factor,
        "saturated": (factor < 0.05).to(margin.dtype),
    }
