"""The strength of a LoRA adapter row by row, for sliders, which are trained at several strengths at once.

The change that an adapter makes to a layer's output is multiplied by the strength of the row. At strength 1 the
network is bit for bit the one without strengths, and a sampler's strength s, which scales the weights' change by s,
is the same function.
"""

from typing import Any

from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from diffdpo.errors import ConfigError

ROW_SCALE = "row_scale"
"""The attribute of an adapter's second factor that holds the `RowScale` of its network."""


class RowScale:
    """The strengths that the adapters of one network act at; as a hook, the multiplication by them."""

    def __init__(self) -> None:
        self.scale: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The output of an adapter's second factor, times the strength of its row.

        Rows come first in `output`; where a network folds a part of its frames into them, those of one row follow
        each other.
        """
        if self.scale is None:
            return output
        repeats, remainder = divmod(len(output), len(self.scale))
        if remainder or not repeats:
            raise ConfigError(
                f"train.lora.targets: a layer sees {len(output)} rows where the batch has {len(self.scale)}, so "
                "its adapter cannot have a strength for each; leave it out of the targets"
            )
        scale = self.scale.to(output).repeat_interleave(repeats)
        return output * scale.view(-1, *[1] * (output.ndim - 1))


def scale_rows(network: nn.Module, scale: Float[Tensor, " row"] | None) -> None:
    """Let the adapters of a network act at these strengths from now on; None: at 1 in all rows.

    ConfigError for a network without adapters, which has nothing to scale, unless all strengths are 1.
    """
    factors = [
        factor
        for layer in network.modules()
        if isinstance(layer, BaseTunerLayer)
        for factor in getattr(layer, "lora_B", {}).values()
    ]
    if not factors:
        if scale is not None and not bool((scale == 1).all()):
            raise ConfigError(
                "a slider of several strengths is an adapter; set train.lora, or data.scales=[1]"
            )
        return
    handle = getattr(factors[0], ROW_SCALE, None)
    if handle is None:
        handle = RowScale()
        for factor in factors:
            setattr(factor, ROW_SCALE, handle)
            factor.register_forward_hook(handle)
    handle.scale = scale
