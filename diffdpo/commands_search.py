"""Commands around alignment while sampling: directions of steering, probes of latents."""

import typer

from diffdpo.config_commands import ConfigCommand, ErrorLines, register_config_command

FITS = {
    "direction": (
        "Directions in a network's activations, for sampling.steering.",
        ConfigCommand(
            name="fit",
            about="A direction from two contrasted sets of songs, or of prompts.",
            recipe="direction",
            schema="DirectionRun",
            function="fit_direction",
        ),
    ),
    "probe": (
        "Probes of latents, for sampling.reward_guidance.",
        ConfigCommand(
            name="fit",
            about="A probe of an axis from a model's own songs and their scores.",
            recipe="probe",
            schema="ProbeRun",
            function="fit_latent_probe",
        ),
    ),
}
"""The groups of commands: help of the group, and the command in it."""


def register_search(app: typer.Typer, errors: ErrorLines) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""
    for name, (about, command) in FITS.items():
        group = typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None)
        app.add_typer(group, name=name)
        register_config_command(group, errors, command)
