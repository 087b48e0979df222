"""Commands around evaluation: tables of a report, and how many prompts an effect needs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from diffdpo.config_paths import expand_path
from diffdpo.errors import ConfigError


def register_evaluation(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""

    @app.command("report", help="The numbers of a finished round or evaluation as tables.")
    def report_command(
        source: Annotated[str, typer.Argument(help="Folder of a round or of `diffdpo evaluate`")],
        table: Annotated[str, typer.Option(help="markdown or latex")] = "markdown",
    ) -> None:
        with errors():
            from diffdpo.recipes.report import print_tables

            typer.echo(print_tables(Path(expand_path(source)), table))

    @app.command(
        "power",
        help="How many prompts an effect needs, and the smallest effect that a number of prompts shows.",
    )
    def power_command(
        source: Annotated[str, typer.Argument(help="Folder of `diffdpo evaluate`: its spread is taken")] = "",
        sd: Annotated[
            float | None,
            typer.Option(
                help="Spread of the paired difference between prompts, in sd of the baseline's songs"
            ),
        ] = None,
        effect: Annotated[list[float] | None, typer.Option(help="In sd; may be repeated")] = None,
        prompts: Annotated[list[int] | None, typer.Option(help="May be repeated")] = None,
        power: Annotated[float, typer.Option(help="Probability to tell the effect from zero")] = 0.8,
        axes: Annotated[int, typer.Option(help="Axes that are judged together (Holm)")] = 1,
    ) -> None:
        with errors():
            from diffdpo.recipes.power import PowerSettings, compute_power

            try:
                settings = PowerSettings(
                    effects=tuple(effect or PowerSettings.effects),
                    prompts=tuple(prompts or PowerSettings.prompts),
                    power=power,
                    axes=axes,
                )
            except ValueError as error:
                raise ConfigError(str(error)) from None
            typer.echo(compute_power(expand_path(source), sd, settings))
