"""Commands around reward models: fitted to votes, and repaired by a few new ones."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from diffdpo.config_paths import expand_path


def register_reward(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""
    group = typer.Typer(
        help="Reward models from votes, for the scorer `reward`.", no_args_is_help=True, rich_markup_mode=None
    )
    app.add_typer(group, name="reward")

    @group.command("train", help="A reward model from votes, on frozen features; a scorer like any other.")
    def train_command(
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
            from diffdpo.recipes.reward import RewardRun, run

            words = list(overrides or [])
            if source is not None and "=" in source:
                words, source = [source, *words], None
            path = None if source is None else expand_path(source)
            cfg = build_config(RewardRun, path, words, "reward_train")
            cfg.check_parts()
            if dry_run:
                typer.echo(to_yaml(cfg).rstrip())
                return
            run(cfg)
