"""Adapters of any network, with factors that change what it computes."""

from pathlib import Path

import torch

from diffdpo.models.adapters import save_adapter
from diffdpo.recipes.export_adapter import AdapterExport, export_adapter
from diffdpo.training.config import LoraConfig
from diffdpo.training.lora import add_lora


def write_export(model, folder: Path, layout: str, **peft) -> Path:
    """An adapter on all layers that a model names, exported for another program; the model's network has it too."""
    add_lora(model.network, LoraConfig(rank=2, alpha=3.0, peft=peft), model.lora_targets, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.network.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    save_adapter(model.network, model.network.state_dict(), folder / "export")
    export_adapter(AdapterExport(source=folder / "export", target=folder / layout, layout=layout))
    return folder / layout
