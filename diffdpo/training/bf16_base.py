"""A frozen base stored in bf16: each linear layer's weight is raised to the precision of its product when it runs,
forward and backward, and freed behind it. No full copy of the weights ever exists.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.devices import has_fast_bf16


class StoredProduct(torch.autograd.Function):
    """x W^T + b with W in its stored precision, raised to that of x for the product alone; W and b are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, bias: Tensor | None) -> Tensor:
        """The product in the precision of x, outside autocast."""
        ctx.save_for_backward(stored)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, stored.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        """The derivative by x; the weight is raised anew."""
        (stored,) = ctx.saved_tensors
        (slope,) = slopes
        with torch.autocast(slope.device.type, enabled=False):
            return slope @ stored.to(slope.dtype), None, None


class Bf16Linear(nn.Linear):
    """A frozen linear layer whose weight is stored in bf16.

    It computes in the precision of its input, or of autocast. Where that is bf16 and the device has no fast product
    of bf16, the same numbers are multiplied in fp32 and the result is rounded, as the hardware would.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.stored = nn.Parameter(layer.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = layer.bias
        self.has_fast_cpu = has_fast_bf16(torch.device("cpu"))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight in fp32, made anew each time: adapters take their precision from it."""
        return self.stored.detach().float()

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The layer's output, in the precision that it computes in."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x = x.to(dtype)
        if dtype == torch.bfloat16 and not self.has_fast_cpu and device == "cpu":
            return StoredProduct.apply(x.float(), self.stored, self.bias).to(dtype)
        return StoredProduct.apply(x, self.stored, self.bias)


def store_bf16(network: nn.Module, layers: list[str]) -> None:
    """Store the weights of these linear layers in bf16, one after another, in their places."""
    for name in layers:
        owner, _, leaf = name.rpartition(".")
        layer: Any = network.get_submodule(name)
        setattr(network.get_submodule(owner), leaf, Bf16Linear(layer))
