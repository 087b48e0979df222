"""The loser's gradient, scaled so that the winner's error does not rise: Diffusion-SDPO (arXiv 2511.03317)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffdpo.objectives.terms.margin import present
from diffdpo.types import Outputs

Gradient = Float[Tensor, "*batch element"]


def loser_scale(winner: Gradient, loser: Gradient, mu: float) -> Float[Tensor, "*batch"]:
    """lambda in [0, 1] from the gradients of both errors with respect to the prediction.

    A descent step along winner - lambda loser changes the winner's error, to first order, by
    -(‖winner‖² - lambda <winner, loser>), which is at most -mu ‖winner‖² for
    lambda = (1 - mu) ‖winner‖² / <winner, loser>. Where the two do not point the same way nothing has to be held
    back. That the gradients of the prediction stand for those of the weights is the paper's approximation.
    """
    agreement = (winner * loser).sum(-1)
    allowed = (1 - mu) * winner.square().sum(-1) / agreement.clamp(min=torch.finfo(agreement.dtype).tiny)
    return torch.where(agreement > 0, allowed.clamp(0, 1), 1.0)


def pair_scale(
    outputs: Outputs, mu: float, weights: Float[Tensor, "pair 2 frame"] | None = None
) -> Float[Tensor, " pair"]:
    """lambda of every pair by itself; `weights` say how much each frame counts, all alike if there are none.

    The original takes one for a micro-batch, which holds on average only and depends on how the batch is split.
    """
    seen = present(outputs.velocities)
    error = (seen.policy - seen.target).detach()
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    if weights is not None:
        error = error.where(weights[..., None] > 0, 0) * weights[..., None].to(error.dtype)
    elif outputs.mask is not None:
        error = error.where(outputs.mask[..., None], 0) / outputs.mask.sum(-1)[..., None, None].clamp(min=1)
    winner, loser = rearrange(error, "pair member frame channel -> member pair (frame channel)")
    return loser_scale(winner, loser, mu)


def attenuate(
    policy: Float[Tensor, "pair 2"], scale: Float[Tensor, " pair"] | float
) -> Float[Tensor, "pair 2"]:
    """The same errors, the loser's with its gradient multiplied by `scale`."""
    winner, loser = policy.unbind(1)
    return torch.stack([winner, loser.detach() + scale * (loser - loser.detach())], 1)
