"""Commands around evaluation: tables of a report, how many prompts an effect needs, and where real songs lie."""

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
        help="How many prompts an effect needs, and the smallest effect that a number of prompts shows; with "
        "--votes, how many votes and raters a preference needs.",
    )
    def power_command(  # noqa: PLR0913 - options of two tables
        context: typer.Context,
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
        votes: Annotated[bool, typer.Option("--votes", help="Votes of listeners, not prompts")] = False,
        share: Annotated[
            list[float] | None, typer.Option(help="Of decisive votes, above 0.5; may be repeated")
        ] = None,
        per_rater: Annotated[int, typer.Option(help="Votes that each rater gives")] = 40,
        icc: Annotated[float, typer.Option(help="Correlation of the answers of one rater")] = 0.05,
        ties: Annotated[float, typer.Option(help="Share of votes that are ties")] = 0.1,
    ) -> None:
        with errors():
            from diffdpo.recipes.power import (
                PowerSettings,
                VotePowerSettings,
                compute_power,
                vote_power_table,
            )

            _check_table(context, votes)
            try:
                if votes:
                    shares = tuple(share or VotePowerSettings.shares)
                    settings_of_votes = VotePowerSettings(shares, per_rater, icc, ties, power, axes)
                    typer.echo(vote_power_table(settings_of_votes))
                    return
                settings = PowerSettings(
                    effects=tuple(effect or PowerSettings.effects),
                    prompts=tuple(prompts or PowerSettings.prompts),
                    power=power,
                    axes=axes,
                )
            except ValueError as error:
                raise ConfigError(str(error)) from None
            typer.echo(compute_power(expand_path(source), sd, settings))

    _register_reference(app, errors)


def _check_table(context: typer.Context, votes: bool) -> None:
    """ConfigError for an option of the table that is not printed."""
    foreign = ("source", "sd", "effect", "prompts") if votes else ("share", "per_rater", "icc", "ties")
    for name in foreign:
        if context.get_parameter_source(name).name == "COMMANDLINE":  # type: ignore[union-attr]
            option = "the folder" if name == "source" else f"--{name.replace('_', '-')}"
            rest = (
                "is not of votes; leave it out, or leave out --votes" if votes else "is of votes; add --votes"
            )
            raise ConfigError(f"{option} {rest}")


def _register_reference(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    @app.command(
        "reference",
        help="Where real songs lie on each axis after the model's codec: a file for a utility that saturates.",
    )
    def reference_command(
        songs: Annotated[
            Path, typer.Argument(help="A folder of songs, or a manifest; styles are in the text")
        ],
        out: Annotated[Path, typer.Argument(help="The .json file to be written")],
        scorers: Annotated[
            str, typer.Option(help="Names, comma-separated; empty: those that are mined")
        ] = "",
        model: Annotated[str, typer.Option(help="Whose codec is used")] = "tiny",
        arg: Annotated[
            list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the model; may be repeated")
        ] = None,
        windows: Annotated[int, typer.Option(help="Of each song")] = 3,
        seconds: Annotated[
            float, typer.Option(help="Length of a window: that of the generated songs")
        ] = 10.0,
        split: Annotated[str, typer.Option(help="Songs of this split of a manifest only")] = "",
    ) -> None:
        with errors():
            from diffdpo.recipes.reference import ReferenceSettings, make_reference

            try:
                settings = ReferenceSettings(
                    scorers=tuple(name for name in scorers.split(",") if name) or ReferenceSettings.scorers,
                    model=model,
                    model_args=tuple(arg or ()),
                    windows=windows,
                    seconds=seconds,
                    split=split,
                )
            except ValueError as error:
                raise ConfigError(str(error)) from None
            path, target = (Path(expand_path(str(entry))) for entry in (songs, out))
            typer.echo(make_reference(path, target, settings))
