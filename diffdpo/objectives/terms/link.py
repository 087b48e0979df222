"""Links: from the implicit rewards of a pair to its loss. A new one is a function here and a line in LINKS.

The implicit reward of a song is h = (beta/2) (reference's error - policy's error), in nats up to the constant
that beta carries; `chosen` is the winner's, `rejected` the loser's, and their difference is the margin z. Every
link is a function of these two numbers for each pair alone, so that no loss depends on what else is in the
batch; where a paper subtracts a batch mean (BCO's reward shift), it arrives as `shift`, detached.

Formulas follow the papers; the zoo is surveyed in TRL's documentation of DPO losses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Rewards = Float[Tensor, " pair"]


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """What links may look at besides the rewards."""

    beta: float
    """In the ½ convention: rewards are (beta/2) times differences of errors."""
    smoothing: float = 0.0
    """Probability that a pair is labelled the wrong way round."""
    shift: Rewards | float = 0.0
    """Reference point of rewards, for links that do not depend on the margin alone."""


Link = Callable[[Rewards, Rewards, LinkOptions], Rewards]


def sigmoid(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """-log σ(z), or its mean over both labellings: DPO (Rafailov et al. 2023, eq. 7), cDPO (Mitchell 2023)."""
    z = chosen - rejected
    return -(1 - options.smoothing) * F.logsigmoid(z) - options.smoothing * F.logsigmoid(-z)


def robust(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """Unbiased under flipped labels: rDPO (Chowdhury et al. 2024, eq. 12)."""
    z, flip = chosen - rejected, options.smoothing
    return (-(1 - flip) * F.logsigmoid(z) + flip * F.logsigmoid(-z)) / (1 - 2 * flip)


def hinge(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """max(0, 1 - z): SLiC (Zhao et al. 2023, eq. 1)."""
    return F.relu(1 - (chosen - rejected))


def ipo(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """(z/b - 1/(2b))² with b = beta/2: the margin is pulled to ½: IPO (Azar et al. 2023, eq. 17)."""
    scale = options.beta / 2
    return ((chosen - rejected) / scale - 1 / (2 * scale)) ** 2


def bco(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """Each song against a reference point: BCO (Jung et al. 2024, eq. 9)."""
    return -F.logsigmoid(chosen - options.shift) - F.logsigmoid(options.shift - rejected)


def nca(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """Noise contrast that also holds the winner's likelihood up: NCA (Chen et al. 2024, eq. 14)."""
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def apo_zero(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """Winner up, loser down; for winners better than the model: APO-zero (D'Oosterlinck et al. 2024, eq. 3)."""
    return (1 - chosen.sigmoid()) + rejected.sigmoid()


def apo_down(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """Both down, the loser faster; for a model better than its winners: APO-down (ibid., eq. 4)."""
    return chosen.sigmoid() + (1 - (chosen - rejected).sigmoid())


def exo(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """KL(model ‖ labels) instead of the cross-entropy: EXO (Ji et al. 2024, eq. 16). It needs smoothing > 0."""
    z, flip = chosen - rejected, options.smoothing or 1e-3
    return z.sigmoid() * (F.logsigmoid(z) - math.log1p(-flip)) + (-z).sigmoid() * (
        F.logsigmoid(-z) - math.log(flip)
    )


def dmpo(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """The same reverse KL with one part in a hundred smoothed: DMPO (divergence minimisation for diffusion)."""
    smoothed = LinkOptions(beta=options.beta, smoothing=options.smoothing or 0.01)
    return exo(chosen, rejected, smoothed)


def sppo(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """Rewards pulled to ±½: SPPO-hard (Wu et al. 2024, eq. 4.7)."""
    scale = options.beta / 2
    return ((chosen - 0.5) / scale) ** 2 + ((rejected + 0.5) / scale) ** 2


def discopop(chosen: Rewards, rejected: Rewards, options: LinkOptions) -> Rewards:
    """Logistic below and exponential above z = 0, mixed by σ(z/0.05): DiscoPOP (Lu et al. 2024, eq. 5).

    It rises around z = 0, so a policy equal to its reference is first pulled the wrong way.
    """
    z = chosen - rejected
    mix = (z / 0.05).sigmoid()
    return -(1 - mix) * F.logsigmoid(z) + mix * (-z).exp()


LINKS: dict[str, Link] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "bco": bco,
    "nca": nca,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "exo": exo,
    "dmpo": dmpo,
    "sppo": sppo,
    "discopop": discopop,
}
