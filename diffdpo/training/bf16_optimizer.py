"""AdamW for weights stored in bf16, whose steps of 2^-8 are coarser than most updates: with master copies in fp32,
or with updates that are rounded up or down by chance, so that small ones are taken in the mean.

Moments are fp32 in both cases. In bf16 the second would stand still, since it moves by a thousandth of itself.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor
from torch.optim.adamw import adamw

from diffdpo.randomness import seed_for

MASTER = "master"
"""The key of a weight's fp32 copy in the optimiser's state."""


def round_stochastic(
    values: Float32[Tensor, "*shape"], generator: torch.Generator
) -> BFloat16[Tensor, "*shape"]:
    """The values in bf16, each rounded to one of its two neighbours so that its mean is the value.

    The lower 16 bits of an fp32 are what is cut: with a uniform number of 16 bits added, they carry into the upper
    ones with the probability of their share (Gupta et al. 2015).
    """
    noise = torch.randint(1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    return noise.add_(values.view(torch.int32)).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()


class Bf16AdamW(torch.optim.AdamW):
    """AdamW on weights in bf16, computed in fp32, one tensor at a time.

    With `has_master` every weight has a copy in fp32 in the state, which is what is updated; the weight is that
    copy rounded. Without, the weight plus its update is rounded stochastically, by random numbers of (seed, tensor,
    step): replicas round alike, and a resumed run as one that was not stopped.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        has_master: bool,
        seed: int = 0,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas)
        self.has_master = has_master
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every weight that has a gradient."""
        loss = None if closure is None else closure()
        for number, (group, parameter) in enumerate(self._members()):
            if parameter.grad is not None:
                self._update(group, parameter, parameter.grad.float(), number)
        return loss

    def _members(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, parameter) for group in self.param_groups for parameter in group["params"]]

    def _update(self, group: Mapping[str, Any], parameter: Tensor, gradient: Tensor, number: int) -> None:
        state = self.state[parameter] or self._start(parameter)
        weight = state[MASTER] if self.has_master else parameter.float()
        adamw(
            [weight], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
            fused=parameter.device.type in FUSED_DEVICES, amsgrad=False, beta1=group["betas"][0],
            beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            maximize=False,
        )  # fmt: skip
        if not self.has_master:
            key = f"{number}|{int(state['step'])}"
            generator = torch.Generator(weight.device).manual_seed(seed_for(self.seed, key, "rounding"))
            weight = round_stochastic(weight, generator)
        parameter.copy_(weight)

    def _start(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state before the first update."""
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(parameter, dtype=torch.float32)
        if self.has_master:
            state[MASTER] = parameter.float()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state in its own precision; torch's would cast it to that of the weights."""
        super().load_state_dict(dict(state_dict))
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        for name, (_, parameter) in zip(names, self._members(), strict=True):
            if name in state_dict["state"]:
                own = {
                    key: value.to(parameter.device, copy=True)
                    for key, value in state_dict["state"][name].items()
                }
                self.state[parameter] = own


FUSED_DEVICES = ("cuda", "cpu")
"""Devices on which torch updates a tensor in one pass over it."""
