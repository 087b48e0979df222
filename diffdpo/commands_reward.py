"""Commands around reward models: fitted to votes, and repaired by a few new ones."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Annotated, Any

import typer

from diffdpo.config_paths import expand_path


def register_reward(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""
    group = typer.Typer(
        help="Reward models from votes, for the scorer `reward`.", no_args_is_help=True, rich_markup_mode=None
    )
    app.add_typer(group, name="reward")

    _register(
        group,
        errors,
        ("train", "reward", "RewardRun"),
        "A reward model from votes, on frozen features; a scorer like any other.",
    )
    _register(
        group,
        errors,
        ("personal", "reward_personal", "PersonalRun"),
        "The taste of one listener from few votes, and the pairs to ask about next.",
    )


def _register(
    group: typer.Typer,
    errors: Callable[[], AbstractContextManager[None]],
    parts: tuple[str, str, str],
    about: str,
) -> None:
    """Add a command; `parts` are its name, its recipe's module and its configuration."""
    name, module, schema = parts

    @group.command(name, help=about)
    def command(
        source: Annotated[
            str | None,
            typer.Argument(help="A preset, a YAML file, or the first key=value", metavar="[CONFIG]"),
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

            recipe = import_module(f"diffdpo.recipes.{module}")
            words = list(overrides or [])
            if source is not None and "=" in source:
                words, source = [source, *words], None
            path = None if source is None else expand_path(source)
            cfg: Any = build_config(getattr(recipe, schema), path, words, f"reward_{name}")
            cfg.check_parts()
            if dry_run:
                typer.echo(to_yaml(cfg).rstrip())
                return
            recipe.run(cfg)
