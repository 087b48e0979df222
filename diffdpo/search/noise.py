"""Optimised noise: the noise from which a sampler's song comes near to a target (DITTO, Novack et al. 2024).

x_T* = argmin L(f(Sampler(x_T)), y) by Adam, with gradients through the whole sampler. After each step the noise
goes back to the shell on which Gaussian noise lies: away from it the network has seen nothing and songs break.
Everything is elementwise or belongs to one song, so a song depends neither on its batch nor on how many iterations
follow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.flow import Latents

SongLosses = Float[Tensor, " song"]
FrameMask = Bool[Tensor, "song frame"]
SHELL_WIDTH = 0.02
"""How far the norm of noise may be from sqrt(d), as a share of it, d its number of values."""
MOMENTUM, SQUARE_MOMENTUM, EPSILON = 0.9, 0.999, 1e-8
"""Adam's (Kingma & Ba 2015)."""


@dataclass(frozen=True)
class NoiseOptimiser:
    """How noise is optimised: Adam, the shell, and when to stop."""

    iterations: int = 20
    lr: float = 0.05
    """Adam's step. DITTO's is 0.005 for 70 to 150 iterations; far above 0.1 it diverges."""
    shell: bool = True
    """Bring the noise back to the Gaussian shell after each step, see `project_to_shell`."""
    patience: int = 0
    """Iterations without a new best loss after which a song stops; 0: never."""
    target_loss: float = 0.0
    """A song stops once its loss is at most this; 0: never."""
    keep_best: bool = True
    """Whether the result is the noise of the lowest loss, else the last."""

    def __post_init__(self) -> None:
        check_range(self, "iterations", "patience", "target_loss", low=0)
        check_range(self, "lr", above=0)


@dataclass(frozen=True, eq=False)
class NoiseResult:
    """Optimised noise."""

    noise: Latents
    losses: Float[Tensor, "iteration song"]
    """The loss before each step, and that after the last: one row more than there were iterations. A song that has
    stopped keeps the loss it stopped at."""


def optimise_noise(
    sample: Callable[[Latents], Latents],
    loss: Callable[[Latents, int], SongLosses],
    noise: Latents,
    cfg: NoiseOptimiser,
    mask: FrameMask | None = None,
    on_iteration: Callable[[int, SongLosses], None] | None = None,
) -> NoiseResult:
    """Noise whose songs have a low loss.

    `sample` makes songs of noise, differentiably; `loss(songs, iteration)` gives a number a song. `mask` is True on
    the frames that exist. The first k iterations of a longer run are the run of k.
    """
    exists = torch.ones(noise.shape[:2], dtype=torch.bool) if mask is None else mask
    exists = exists.to(noise.device)
    start = noise.detach()
    x, best = start, start
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    lowest = torch.full((len(x),), torch.inf, device=x.device)
    last, stale = lowest.clone(), torch.zeros(len(x), dtype=torch.long, device=x.device)
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    rows = []
    for iteration in range(cfg.iterations + 1):
        is_last = iteration == cfg.iterations or not bool(active.any())
        values, gradient = _loss_and_gradient(sample, loss, x, iteration, with_gradient=not is_last)
        last = torch.where(active, values, last)
        rows.append(last)
        if on_iteration is not None:
            on_iteration(iteration, last)
        better = active & (values < lowest)
        best = torch.where((better if cfg.keep_best else active)[:, None, None], x, best)
        lowest, stale = torch.where(better, values, lowest), torch.where(better, 0, stale + 1)
        active &= ~((stale >= cfg.patience) & (cfg.patience > 0))
        active &= ~((values <= cfg.target_loss) & (cfg.target_loss > 0))
        if is_last or not bool(active.any()):
            break
        assert gradient is not None
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        square = SQUARE_MOMENTUM * square + (1 - SQUARE_MOMENTUM) * gradient**2
        step = mean / (1 - MOMENTUM ** (iteration + 1))
        scale = (square / (1 - SQUARE_MOMENTUM ** (iteration + 1))).sqrt() + EPSILON
        proposal = x - cfg.lr * step / scale
        proposal = project_to_shell(proposal, start, exists) if cfg.shell else proposal
        x = torch.where(active[:, None, None] & exists[..., None], proposal, x)
    return NoiseResult(best, torch.stack(rows))


def _loss_and_gradient(
    sample: Callable[[Latents], Latents],
    loss: Callable[[Latents, int], SongLosses],
    x: Latents,
    iteration: int,
    *,
    with_gradient: bool,
) -> tuple[SongLosses, Latents | None]:
    """The loss of each song, and the gradient with respect to its noise."""
    if not with_gradient:
        with torch.no_grad():
            return loss(sample(x), iteration).detach(), None
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        values = loss(sample(leaf), iteration)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)


def project_to_shell(noise: Latents, start: Latents, mask: FrameMask) -> Latents:
    """Noise on the Gaussian shell: each channel with the mean and the variance over time that it had in `start`,
    the noise that was drawn, and all together with a norm of sqrt(d) but for SHELL_WIDTH. `start` itself stays as
    it is, if its norm is in that range."""
    center, deviation = _moments(noise, mask)
    old_center, old_deviation = _moments(start, mask)
    projection = (noise - center) * (old_deviation / deviation.clamp(min=1e-6)) + old_center
    projection = torch.where(mask[..., None], projection, noise)
    root = (mask.sum(1) * noise.shape[-1]).to(noise).sqrt()
    norm = torch.where(mask[..., None], projection, 0).flatten(1).norm(dim=1)
    ratio = norm.clamp(min=(1 - SHELL_WIDTH) * root, max=(1 + SHELL_WIDTH) * root) / norm.clamp(min=1e-12)
    return torch.where(mask[..., None], projection * ratio[:, None, None], noise)


def _moments(
    noise: Latents, mask: FrameMask
) -> tuple[Float[Tensor, "song 1 channel"], Float[Tensor, "song 1 channel"]]:
    """Mean and standard deviation of each channel over the frames that exist."""
    weights = mask[..., None].to(noise)
    count = weights.sum(1, keepdim=True).clamp(min=1)
    mean = (noise * weights).sum(1, keepdim=True) / count
    variance = ((noise - mean) ** 2 * weights).sum(1, keepdim=True) / count
    return mean, variance.sqrt()
