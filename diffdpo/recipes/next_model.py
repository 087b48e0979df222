"""The model after a training run: what the next round samples from, and what is evaluated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffdpo.models.adapter_config import ALWAYS
from diffdpo.registry import Choice


def next_model(
    model: Choice, export: Path, *, lora: bool, strength: float = 1.0, interval: Sequence[float] = ALWAYS
) -> Choice:
    """The model after a training run. Adapters of earlier rounds are listed before the new one.

    `strength` scales the new adapter's change of the network. Above 1 it extrapolates from the model before through
    the model after training (ExPO, Zheng et al. 2024, arXiv 2404.16792), below 1 it interpolates. `interval` is of
    the times t at which the adapter acts.
    """
    if not lora:
        args = {key: value for key, value in model.args.items() if key not in ("adapter", "adapters")}
        return Choice(model.name, {**args, "network": str(export)})
    is_timed = tuple(interval) != ALWAYS
    if model.args.get("adapters") or is_timed:
        entry: dict[str, Any] = {"path": str(export)} | ({} if strength == 1 else {"strength": strength})
        entry |= {"interval": list(interval)} if is_timed else {}
        return Choice(model.name, {**model.args, "adapters": [*(model.args.get("adapters") or ()), entry]})
    path = str(export) if strength == 1 else f"{export}@{strength:g}"
    earlier = model.args.get("adapter") or ""
    if isinstance(earlier, str):
        adapters: str | list[str] = f"{earlier},{path}" if earlier else path
    else:
        adapters = [*earlier, path]
    return Choice(model.name, {**model.args, "adapter": adapters})
