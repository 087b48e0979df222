"""Commands around alignment while sampling: directions of steering, probes of latents."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Annotated

import typer

from diffdpo.config_paths import expand_path

_Errors = Callable[[], AbstractContextManager[None]]


def register_search(app: typer.Typer, errors: _Errors) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""
    _register_fit(
        app,
        errors,
        "direction",
        ("DirectionRun", "fit_direction"),
        about="Directions in a network's activations, for sampling.steering.",
        fit="A direction from two contrasted sets of songs, or of prompts.",
    )
    _register_fit(
        app,
        errors,
        "probe",
        ("ProbeRun", "fit_latent_probe"),
        about="Probes of latents, for sampling.reward_guidance.",
        fit="A probe of an axis from a model's own songs and their scores.",
    )


def _register_fit(
    app: typer.Typer, errors: _Errors, name: str, parts: tuple[str, str], *, about: str, fit: str
) -> None:
    """Add `NAME fit`; `parts` are the configuration and the function in `diffdpo.recipes.NAME`."""
    group = typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name=name)

    @group.command("fit", help=fit)
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

            schema, run = (getattr(import_module(f"diffdpo.recipes.{name}"), part) for part in parts)
            words = list(overrides or [])
            if source is not None and "=" in source:
                words, source = [source, *words], None
            cfg = build_config(schema, None if source is None else expand_path(source), words, name)
            cfg.check_parts()
            typer.echo(to_yaml(cfg).rstrip() if dry_run else run(cfg))
