"""Weights from a seed and a sound by a formula, for which other implementations' numbers can be had again."""

import math

import torch
from torch import Tensor


def drawn_state(state: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Normal weights of deviation 1.4 / √inputs, drawn name by name in their order; scales and variances near 1."""
    weights = {}
    for number, name in enumerate(sorted(state)):
        tensor = state[name]
        if not tensor.is_floating_point() or name.endswith(".pe"):
            weights[name] = tensor
            continue
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1000 * seed + number))
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            weights[name] = (noise / 3).exp()
        else:
            weights[name] = 1.4 * noise / math.sqrt(max(2, tensor[0].numel()))
    return weights


def rising_tone(seconds: float, sample_rate: int = 16_000) -> Tensor:
    """A tone of rising frequency that swells."""
    t = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
    return (0.3 * (1 + torch.sin(3 * t)) * torch.sin(2 * math.pi * (220 * t + 40 * t**2))).float()
