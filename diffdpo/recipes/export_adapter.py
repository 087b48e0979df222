"""The command `export-adapter`: a LoRA in the layout of another program, with a model card beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, ModelCard, ModelCardData

from diffdpo.data.licenses import DataTerms, card_license
from diffdpo.data.lineage import data_terms
from diffdpo.disk import disk_errors
from diffdpo.errors import CheckpointError, ConfigError, DataError
from diffdpo.models.adapters import ADAPTER, ADAPTER_PREFIX, read_adapter, supported_config, write_adapter
from diffdpo.models.lora_layouts import PEFT_FILE, write_comfyui, write_peft
from diffdpo.recipes.calibrate import calibration_text
from diffdpo.recipes.estimate import sketch_model
from diffdpo.registry import Choice
from diffdpo.runs import finish, read_json

CARD = "README.md"
COMFYUI_FILE = "comfyui.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterExport:
    """An adapter, where it goes, and what its card says."""

    source: Path
    target: Path
    layout: Literal["diffusers", "peft", "comfyui"] = "diffusers"
    model: str = ""
    """Whose names of layers the adapter has; needed for ComfyUI where the original code has others."""
    model_args: tuple[str, ...] = ()
    base: str = ""
    license: str = ""
    data_licenses: tuple[str, ...] = ()
    report: str = ""
    calibration: str = ""
    """Folder of `diffdpo calibrate`, for the card's section on strength."""
    push: str = ""


def export_adapter(settings: AdapterExport) -> Path:
    """Write adapter and card; returns the file with the tensors. ConfigError for a target that exists."""
    if settings.target.exists():
        raise ConfigError(f"{settings.target}: exists; remove it or choose another target")
    network = network_of(settings)
    state, config = read_adapter(settings.source, network)
    config = supported_config(config, settings.source)
    if not config:
        raise CheckpointError(f"{settings.source}: names no rank and alpha, which other programs need")
    target, card = settings.target, model_card(settings, config)
    if settings.layout == "comfyui":
        path = target / COMFYUI_FILE
        write_comfyui(state, config, path, network)
    elif settings.layout == "peft":
        path = target / PEFT_FILE
        write_peft(state, config, target)
    else:
        path = target / ADAPTER
        write_adapter(state, config, target, prefix=ADAPTER_PREFIX)
    with disk_errors(target / CARD):
        card.save(target / CARD)
    finish(target, source=str(settings.source), layout=settings.layout, **adapter_terms(settings).entries())
    if settings.push:
        api = HfApi()
        api.create_repo(settings.push, exist_ok=True)
        api.upload_folder(repo_id=settings.push, folder_path=target)
    return path


def network_of(settings: AdapterExport) -> Any:
    """The network whose layers have the names, without its weights where it needs none; None without a model."""
    if not settings.model:
        return None
    args: dict[str, str] = {}
    for word in settings.model_args:
        key, sign, args[key] = word.partition("=")
        if not sign:
            raise ConfigError(f"--arg {word}: not of the form key=value")
    return sketch_model(Choice(settings.model, args))[0].network


def model_card(settings: AdapterExport, config: dict[str, Any]) -> ModelCard:
    """The card: base, licenses, the evaluation's table, and the commands that load the adapter."""
    terms = adapter_terms(settings)
    data = ModelCardData(
        license=card_license(terms, settings.license) or None,
        base_model=settings.base or None,
        library_name={"diffusers": "diffusers", "peft": "peft", "comfyui": None}[settings.layout],
        pipeline_tag="text-to-audio",
        tags=["music", "lora", "preference-optimization", "diffdpo"],
    )
    kind = "DoRA" if config.get("use_dora") else "LoRA"
    purpose = "trained" if settings.calibration and not settings.report else "aligned on preferences"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {settings.target.name}",
        f"A {kind} adapter of rank {config['r']} for {settings.base or 'a song model'}, {purpose} "
        "with [diffdpo](https://github.com/diffdpo/diffdpo).",
        f"## Use\n\n{usage(settings)}",
        f"## Licenses\n\n{licenses(settings, terms)}",
    ]
    if settings.calibration:
        parts.append(f"## Strength\n\n{calibration_text(Path(settings.calibration))}")
    if settings.report:
        parts.append(f"## Evaluation\n\n{evaluation_table(Path(settings.report))}")
    return ModelCard("\n\n".join(parts) + "\n", ignore_metadata_errors=True)


def usage(settings: AdapterExport) -> str:
    """How the program of this layout loads the adapter."""
    name = settings.push or settings.target.name
    if settings.layout == "comfyui":
        return (
            f"Copy `{COMFYUI_FILE}` into ComfyUI's `models/loras` and load it with the node *LoraLoaderModelOnly*; "
            "its strength is the node's `strength_model`."
        )
    if settings.layout == "peft":
        load = f'network = PeftModel.from_pretrained(network, "{name}")'
        return f"```python\nfrom peft import PeftModel\n\n{load}\n```"
    return (
        "Where the pipeline loads LoRA, as ACE-Step's does (for Stable Audio export with `layout=peft`):\n\n"
        f'```python\npipe.load_lora_weights("{name}")\n```\n\nor, for the network alone,\n\n'
        f'```python\nnetwork.load_lora_adapter("{name}", use_safetensors=True)\n```\n\nWith diffdpo, at a strength:'
        f"\n\n```bash\ndiffdpo sample CONFIG model.args.adapter={name}@0.7\n```"
    )


def adapter_terms(settings: AdapterExport) -> DataTerms:
    """Licenses and consents of all that the adapter was trained on, with those that the command names."""
    terms = data_terms([settings.source])
    return terms | DataTerms({"as stated": settings.data_licenses}) if settings.data_licenses else terms


def licenses(settings: AdapterExport, terms: DataTerms) -> str:
    """The licenses of the adapter and of what it was trained on; that they are unknown is said."""
    rows = [f"* adapter: {card_license(terms, settings.license) or 'not stated'}"]
    rows += terms.lines() or ["* data: not stated"]
    text = "\n".join([*rows, "* base: as its own card says"])
    return "\n\n".join(filter(None, [text, terms.summary()]))


def evaluation_table(folder: Path) -> str:
    """The effects on every axis, from the report of `diffdpo evaluate`."""
    report = read_json(folder / "report.json")
    try:
        rows = [
            f"| {row['axis']} | {row['role']} | {row['baseline_mean']:.4g} | {row['aligned_mean']:.4g} | "
            f"{row['effect']['mean']:+.4g} [{row['effect']['low']:+.4g}, {row['effect']['high']:+.4g}] |"
            for row in report["axes"]
        ]
        head = "| axis | role | base | with the adapter | change, 95 % interval |\n|---|---|---|---|---|"
        verdict = report["verdict"]  # a sentence alone in reports of earlier versions
        sentence = verdict if isinstance(verdict, str) else verdict["sentence"]
        return "\n".join([sentence, "", head, *rows])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder / 'report.json'}: no report of `diffdpo evaluate`") from None
