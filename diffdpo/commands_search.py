"""Commands around alignment while sampling: directions of steering."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from diffdpo.config_paths import expand_path


def register_search(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""
    direction = typer.Typer(
        help="Directions in a network's activations, for sampling.steering.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    app.add_typer(direction, name="direction")

    @direction.command("fit", help="A direction from two contrasted sets of songs, or of prompts.")
    def fit_command(
        source: Annotated[
            str | None, typer.Argument(help="A YAML file, or the first key=value", metavar="[CONFIG]")
        ] = None,
        overrides: Annotated[
            list[str] | None,
            typer.Argument(help="key=value, over the configuration", metavar="[KEY=VALUE]..."),
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
        ] = False,
    ) -> None:
        with errors():
            from diffdpo.config import build_config, to_yaml
            from diffdpo.recipes.direction import DirectionRun, fit_direction

            words = list(overrides or [])
            if source is not None and "=" in source:
                words, source = [source, *words], None
            cfg = build_config(
                DirectionRun, None if source is None else expand_path(source), words, "direction"
            )
            cfg.check_parts()
            typer.echo(to_yaml(cfg).rstrip() if dry_run else fit_direction(cfg))
