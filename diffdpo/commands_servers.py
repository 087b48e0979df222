"""The command `serve-scorer`: a scorer behind HTTP."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Annotated

import typer

from diffdpo.errors import ConfigError

_Errors = Callable[[], AbstractContextManager[None]]


def register_servers(app: typer.Typer, errors: _Errors) -> None:
    """Add the command to an app; `errors` turns the user's mistakes into one line."""

    @app.command("serve-scorer", help="A scorer behind HTTP, for runs in other environments.")
    def serve_scorer_command(
        scorer: Annotated[str, typer.Argument(help="Its name, such as songeval")],
        arg: Annotated[
            list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the scorer; may be repeated")
        ] = None,
        host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is the network")] = "127.0.0.1",
        port: Annotated[int, typer.Option(help="0: any free one")] = 8770,
        token_variable: Annotated[
            str, typer.Option(help="Environment variable with the token that clients must send")
        ] = "DIFFDPO_SCORER_TOKEN",
        max_mb: Annotated[float, typer.Option(help="Largest request in MiB")] = 1024.0,
        max_waiting: Annotated[int, typer.Option(help="Requests that may wait")] = 32,
    ) -> None:
        with errors():
            recipe = import_module("diffdpo.recipes.serve_scorer")
            try:
                service = recipe.ScorerService(
                    scorer, tuple(arg or ()), host, port, token_variable, max_mb, max_waiting
                )
            except ValueError as error:
                raise ConfigError(str(error)) from None
            recipe.serve_scorer(service)
