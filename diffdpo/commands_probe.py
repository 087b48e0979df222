"""Commands around latent probes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from diffdpo.config_paths import expand_path


def register_probes(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""
    probe_app = typer.Typer(
        help="Probes of latents, for sampling.reward_guidance.", no_args_is_help=True, rich_markup_mode=None
    )
    app.add_typer(probe_app, name="probe")

    @probe_app.command("fit", help="A probe of an axis from a model's own songs and their scores.")
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
            from diffdpo.recipes.probe import ProbeRun, fit_latent_probe

            words = list(overrides or [])
            if source is not None and "=" in source:
                words, source = [source, *words], None
            cfg = build_config(ProbeRun, None if source is None else expand_path(source), words, "probe")
            cfg.check_parts()
            typer.echo(to_yaml(cfg).rstrip() if dry_run else fit_latent_probe(cfg))
