"""Commands of two words that take a configuration, such as `reward train`: a YAML file, then `key=value`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from diffdpo.config_paths import expand_path

ErrorLines = Callable[[], AbstractContextManager[None]]
"""Turns the user's mistakes into one line."""


@dataclass(frozen=True, kw_only=True)
class ConfigCommand:
    """The second word of a command, and what it runs."""

    name: str
    about: str
    recipe: str
    """The module in `diffdpo.recipes`."""
    schema: str
    """Its configuration."""
    function: str = "run"
    """What runs the configuration; a text that it returns is printed."""


def register_config_command(group: typer.Typer, errors: ErrorLines, command: ConfigCommand) -> None:
    """Add a command to a group."""

    @group.command(command.name, help=command.about)
    def run_command(
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

            recipe = import_module(f"diffdpo.recipes.{command.recipe}")
            words = list(overrides or [])
            if source is not None and "=" in source:
                words, source = [source, *words], None
            path = None if source is None else expand_path(source)
            cfg: Any = build_config(getattr(recipe, command.schema), path, words, command.recipe)
            cfg.check_parts()
            if dry_run:
                typer.echo(to_yaml(cfg).rstrip())
                return
            result = getattr(recipe, command.function)(cfg)
            if isinstance(result, str):
                typer.echo(result)
