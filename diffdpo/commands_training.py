"""Commands around training: its memory before it begins, and its adapters for other programs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffdpo.config_paths import expand_path
from diffdpo.errors import ConfigError

_Errors = Callable[[], AbstractContextManager[None]]


def register_training(app: typer.Typer, errors: _Errors) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""
    _register_estimate(app, errors)
    _register_export_adapter(app, errors)


def print_plan(cfg: Any, command: str, *, ranks: int, per_node: int, backend: str, offload: bool) -> None:
    """The resolved configuration of a training, and as comments below it what each process would do.

    `command` is what stands behind `diffdpo train`.
    """
    from diffdpo.config import to_yaml
    from diffdpo.recipes.launch_plan import LaunchPlan, plan_launch
    from diffdpo.registry import pick

    names = {name: name for name in ("ddp", "zero1", "zero2", "zero3", "fsdp2")}
    key = backend or ("fsdp2" if cfg.train.strategy == "fsdp2" else "ddp")
    try:
        plan = LaunchPlan(ranks, per_node, pick("backend", names, key), offload)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    typer.echo(to_yaml(cfg).rstrip())
    for line in plan_launch(cfg, plan, command):
        typer.echo(f"# {line}")


def _register_estimate(app: typer.Typer, errors: _Errors) -> None:
    @app.command("estimate", help="The memory of a training run on each device, without allocating it.")
    def estimate_command(
        source: Annotated[
            str, typer.Argument(help="A preset such as tiny/dpo, or a YAML file", metavar="CONFIG")
        ],
        overrides: Annotated[
            list[str] | None,
            typer.Argument(help="key=value, over the configuration", metavar="[KEY=VALUE]..."),
        ] = None,
        seconds: Annotated[float, typer.Option(help="Length of the songs; 0: the longest")] = 0.0,
        processes: Annotated[int, typer.Option(help="Devices that train together")] = 1,
        zero: Annotated[int, typer.Option(help="Stage of DeepSpeed's ZeRO, 0 to 3")] = 0,
        group_size: Annotated[int, typer.Option(help="Songs of an example, for objectives on groups")] = 4,
        fsdp2: Annotated[bool, typer.Option("--fsdp2", help="Sharded by FSDP2 instead of ZeRO")] = False,
        offload: Annotated[
            bool, typer.Option("--offload", help="Optimiser on the CPU; weights too where they are sharded")
        ] = False,
    ) -> None:
        with errors():
            from diffdpo.config import build_config
            from diffdpo.recipes.estimate import EstimateSettings, estimate
            from diffdpo.recipes.train import TrainRun

            try:
                settings = EstimateSettings(seconds, processes, zero, group_size, fsdp2, offload)
            except ValueError as error:
                raise ConfigError(str(error)) from None
            words = ["out=estimate", *(overrides or [])]  # a run folder is not needed
            cfg = build_config(TrainRun, expand_path(source), words, "train")
            cfg.check_parts()
            typer.echo("\n".join(estimate(cfg, settings).lines()))


def _register_export_adapter(app: typer.Typer, errors: _Errors) -> None:
    @app.command("export-adapter", help="A LoRA adapter in the layout of another program, with a model card.")
    def export_command(  # noqa: PLR0913 - each is an option
        source: Annotated[str, typer.Argument(help="Folder or file with an adapter, in any layout")],
        target: Annotated[Path, typer.Argument(help="Folder to be made")],
        layout: Annotated[
            Literal["diffusers", "peft", "comfyui"], typer.Option(help="The program it is for")
        ] = "diffusers",
        model: Annotated[str, typer.Option(help="Whose names of layers it has; for ComfyUI")] = "",
        arg: Annotated[
            list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the model; may be repeated")
        ] = None,
        base: Annotated[str, typer.Option(help="Name or hub id of the base, for the card")] = "",
        license_name: Annotated[str, typer.Option("--license", help="License of the adapter")] = "",
        data_license: Annotated[
            list[str] | None, typer.Option(help="License of a part of the data; may be repeated")
        ] = None,
        report: Annotated[str, typer.Option(help="Folder of `diffdpo evaluate`, for the card's table")] = "",
        calibration: Annotated[
            str, typer.Option(help="Folder of `diffdpo calibrate`, for the card's section on strength")
        ] = "",
        push: Annotated[str, typer.Option(help="Upload to this repository of the hub, OWNER/NAME")] = "",
    ) -> None:
        with errors():
            recipe = import_module("diffdpo.recipes.export_adapter")
            settings = recipe.AdapterExport(
                source=Path(expand_path(source)), target=Path(expand_path(str(target))), layout=layout,
                model=model, model_args=tuple(arg or ()), base=base, license=license_name,
                data_licenses=tuple(data_license or ()), report=expand_path(report),
                calibration=expand_path(calibration), push=push,
            )  # fmt: skip
            typer.echo(recipe.export_adapter(settings))
