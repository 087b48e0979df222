"""The model after a training run: what the next round samples from, and what is evaluated."""

from pathlib import Path

from diffdpo.registry import Choice


def next_model(model: Choice, export: Path, *, lora: bool, strength: float = 1.0) -> Choice:
    """The model after a training run. Adapters of earlier rounds are listed before the new one.

    `strength` scales the new adapter's change of the network. Above 1 it extrapolates from the model before through
    the model after training (ExPO, Zheng et al. 2024, arXiv 2404.16792), below 1 it interpolates.
    """
    if not lora:
        args = {key: value for key, value in model.args.items() if key not in ("adapter", "adapters")}
        return Choice(model.name, {**args, "network": str(export)})
    if model.args.get("adapters"):
        entry = {"path": str(export)} | ({} if strength == 1 else {"strength": strength})
        return Choice(model.name, {**model.args, "adapters": [*model.args["adapters"], entry]})
    path = str(export) if strength == 1 else f"{export}@{strength:g}"
    earlier = model.args.get("adapter") or ""
    if isinstance(earlier, str):
        adapters: str | list[str] = f"{earlier},{path}" if earlier else path
    else:
        adapters = [*earlier, path]
    return Choice(model.name, {**model.args, "adapter": adapters})
