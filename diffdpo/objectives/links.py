"""Links: from the implicit rewards of a pair to its loss. A new link is a function here and an entry of LINKS.

`winner` is the winner's reward h = (beta/2) (reference's error - policy's error), `loser` the loser's, and their
difference the margin z. A link sees one pair, so that no loss depends on the rest of its batch. Formulas follow the
papers; TRL's documentation of DPO surveys them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffdpo.errors import ensure
from diffdpo.registry import Choice, Table, bind, pick

Rewards = Float[Tensor, " pair"]
Link = Callable[[Rewards, Rewards, float], Rewards]
"""From the rewards of winners and losers, and beta in the ½ convention, to a loss a pair."""


def sigmoid(winner: Rewards, loser: Rewards, beta: float, *, smoothing: float = 0.0) -> Rewards:
    """-log σ(z), or its mean over both labellings: DPO (Rafailov et al. 2023, eq. 7), cDPO (Mitchell 2023)."""
    z = winner - loser
    ensure(0 <= smoothing < 0.5, f"smoothing must be in [0, 0.5), got {smoothing}")
    return -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)


def robust(winner: Rewards, loser: Rewards, beta: float, *, smoothing: float = 0.0) -> Rewards:
    """Unbiased where the share `smoothing` of labels is flipped: rDPO (Chowdhury et al. 2024, eq. 12)."""
    z, flip = winner - loser, smoothing
    ensure(0 <= flip < 0.5, f"smoothing must be in [0, 0.5), got {flip}")
    return (-(1 - flip) * F.logsigmoid(z) + flip * F.logsigmoid(-z)) / (1 - 2 * flip)


def hinge(winner: Rewards, loser: Rewards, beta: float) -> Rewards:
    """max(0, 1 - z): SLiC (Zhao et al. 2023, eq. 1)."""
    return F.relu(1 - (winner - loser))


def ipo(winner: Rewards, loser: Rewards, beta: float) -> Rewards:
    """(z/b - 1/(2b))² with b = beta/2: the margin is pulled to ½: IPO (Azar et al. 2023, eq. 17)."""
    return ((winner - loser) / (beta / 2) - 1 / beta) ** 2


def bco(winner: Rewards, loser: Rewards, beta: float, *, shift: float = 0.0) -> Rewards:
    """Each song against the reference point `shift`: BCO (Jung et al. 2024, eq. 9)."""
    return -F.logsigmoid(winner - shift) - F.logsigmoid(shift - loser)


def nca(winner: Rewards, loser: Rewards, beta: float) -> Rewards:
    """Noise contrast that also holds the winner's likelihood up: NCA (Chen et al. 2024, eq. 14)."""
    return -F.logsigmoid(winner) - 0.5 * F.logsigmoid(-winner) - 0.5 * F.logsigmoid(-loser)


def apo_zero(winner: Rewards, loser: Rewards, beta: float) -> Rewards:
    """Winner up, loser down; for winners better than the model: APO-zero (D'Oosterlinck et al. 2024, eq. 3)."""
    return (1 - winner.sigmoid()) + loser.sigmoid()


def apo_down(winner: Rewards, loser: Rewards, beta: float) -> Rewards:
    """Both down, the loser faster; for a model better than its winners: APO-down (ibid., eq. 4)."""
    return winner.sigmoid() + (1 - (winner - loser).sigmoid())


def exo(winner: Rewards, loser: Rewards, beta: float, *, smoothing: float = 1e-3) -> Rewards:
    """KL(model ‖ labels) instead of the cross-entropy: EXO (Ji et al. 2024, eq. 16)."""
    z, flip = winner - loser, smoothing
    ensure(0 < flip < 0.5, f"smoothing must be in (0, 0.5), got {flip}")
    right = z.sigmoid() * (F.logsigmoid(z) - math.log1p(-flip))
    return right + (-z).sigmoid() * (F.logsigmoid(-z) - math.log(flip))


def sppo(winner: Rewards, loser: Rewards, beta: float) -> Rewards:
    """Rewards pulled to ±½: SPPO-hard (Wu et al. 2024, eq. 4.7)."""
    return ((winner - 0.5) / (beta / 2)) ** 2 + ((loser + 0.5) / (beta / 2)) ** 2


def discopop(winner: Rewards, loser: Rewards, beta: float) -> Rewards:
    """Logistic below and exponential above z = 0, mixed by σ(z/0.05); it rises at 0 (Lu et al. 2024, eq. 5)."""
    z = winner - loser
    mix = (z / 0.05).sigmoid()
    return -(1 - mix) * F.logsigmoid(z) + mix * (-z).exp()


LINKS: Table[Link] = Table("link", {
    "sigmoid": sigmoid, "robust": robust, "hinge": hinge, "ipo": ipo, "bco": bco, "nca": nca, "apo_zero": apo_zero,
    "apo_down": apo_down, "exo": exo, "dmpo": partial(exo, smoothing=0.01), "sppo": sppo, "discopop": discopop,
})  # fmt: skip
"""dmpo is the reverse KL of exo with one label in a hundred smoothed (divergence minimisation for diffusion)."""


if TYPE_CHECKING:
    LinkChoice = Choice | str
else:  # a field of a configuration cannot be a union, and there a bare name has become a choice before
    LinkChoice = Choice


def build_link(link: Choice | str) -> Link:
    """The function that a choice or a bare name names; ConfigError for an unknown name or argument."""
    choice = Choice(link) if isinstance(link, str) else link
    return bind("link", pick("link", LINKS, choice.name), choice)


def link_choice(link: Choice | str) -> Choice:
    """The choice of a link, from it or its bare name; tried out on rewards of zero, so that mistakes show early."""
    build_link(link)(torch.zeros(1), torch.zeros(1), 1.0)
    return Choice(link) if isinstance(link, str) else link
