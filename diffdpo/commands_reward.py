"""Commands around reward models: of everybody's votes, and of one listener's."""

import typer

from diffdpo.config_commands import ConfigCommand, ErrorLines, register_config_command

COMMANDS = (
    ConfigCommand(
        name="train",
        about="A reward model from votes, on frozen features; a scorer like any other.",
        recipe="reward",
        schema="RewardRun",
    ),
    ConfigCommand(
        name="personal",
        about="The taste of one listener from few votes, and the pairs to ask about next.",
        recipe="reward_personal",
        schema="PersonalRun",
    ),
)


def register_reward(app: typer.Typer, errors: ErrorLines) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""
    group = typer.Typer(
        help="Reward models from votes, for the scorer `reward`.", no_args_is_help=True, rich_markup_mode=None
    )
    app.add_typer(group, name="reward")
    for command in COMMANDS:
        register_config_command(group, errors, command)
