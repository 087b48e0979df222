"""The group of commands `store`: add, search, export, forget."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from diffdpo.config_paths import expand_path

_Errors = Callable[[], AbstractContextManager[None]]
StoreFolder = Annotated[Path, typer.Argument(help="Folder of the store", metavar="STORE")]
Runs = Annotated[
    list[str] | None,
    typer.Option(help="Folder in which tables and models are looked for; may be repeated (runs)"),
]


def register_store(app: typer.Typer, errors: _Errors) -> None:
    """Add the group to an app; `errors` turns the user's mistakes into one line."""
    group = typer.Typer(
        help="Songs, votes and opinions of many studies and data sets in one folder.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    app.add_typer(group, name="store")
    _register_add(group, errors)
    _register_search(group, errors)
    _register_export(group, errors)
    _register_forget(group, errors)


def _paths(names: list[str] | None) -> list[Path]:
    return [Path(expand_path(name)) for name in names or ()]


def _path(name: Path) -> Path:
    return Path(expand_path(str(name)))


def _register_add(group: typer.Typer, errors: _Errors) -> None:
    @group.command("add", help="Add samples, prepared songs, recordings, votes, or a public data set.")
    def add_command(
        store: StoreFolder,
        paths: Annotated[list[str], typer.Argument(help="Folders or files")],
        layout: Annotated[
            str,
            typer.Option("--format", help="Of a public data set, such as music-arena: docs/howto/store.md"),
        ] = "",
        license_name: Annotated[
            str, typer.Option("--license", help="License of what is added, where it does not say")
        ] = "",
        source: Annotated[str, typer.Option(help="What to call it; by default the name of the folder")] = "",
        copy: Annotated[bool, typer.Option("--copy", help="Copy the sounds into the store")] = False,
        consent_scope: Annotated[
            Literal["", "share", "train"], typer.Option(help="What the listeners of votes agreed to")
        ] = "",
        runs: Runs = None,
    ) -> None:
        with errors():
            recipe = import_module("diffdpo.recipes.store")
            settings = recipe.StoreAdd(
                store=_path(store), paths=_paths(paths), layout=layout, license=license_name, source=source,
                copy=copy, scope=consent_scope, runs=_paths(runs),
            )  # fmt: skip
            typer.echo("\n".join(recipe.add_to_store(settings)))


def _register_search(group: typer.Typer, errors: _Errors) -> None:
    @group.command("search", help="Songs similar to a song, a file or words, by harmony, rhythm or style.")
    def search_command(  # noqa: PLR0913 - each is an option
        store: StoreFolder,
        query: Annotated[str, typer.Argument(help="A song's id or hash, or an audio file")] = "",
        text: Annotated[str, typer.Option(help="Words for a style, in place of a song")] = "",
        by: Annotated[Literal["harmony", "rhythm", "style"], typer.Option(help="What is alike")] = "style",
        count: Annotated[int, typer.Option(help="Number of songs")] = 10,
        license_name: Annotated[
            list[str] | None, typer.Option("--license", help="Only songs under it; may be repeated")
        ] = None,
        commercial: Annotated[
            bool, typer.Option("--commercial", help="Only songs that may be used commercially")
        ] = False,
        index: Annotated[
            bool | None,
            typer.Option("--index/--exact", help="A graph of neighbours; by default for many songs"),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    ) -> None:
        with errors():
            recipe = import_module("diffdpo.recipes.store_search")
            settings = recipe.check_store_search(
                store=_path(store), query=expand_path(query), text=text, reader=by, count=count,
                licenses=tuple(license_name or ()), commercial=commercial, index=index,
            )  # fmt: skip
            songs = recipe.search_store(settings)
            if as_json:
                typer.echo(recipe.result_json(songs, settings.store))
            else:
                typer.echo("\n".join(recipe.result_lines(songs, settings.store)))


def _register_export(group: typer.Typer, errors: _Errors) -> None:
    @group.command(
        "export", help="A data set for Hugging Face `datasets`, with a card, of what may be shared."
    )
    def export_command(
        store: StoreFolder,
        out: Annotated[Path, typer.Argument(help="Folder to be made", metavar="OUT")],
        name: Annotated[str, typer.Option(help="Name of the data set, for its card")] = "",
        sounds: Annotated[bool, typer.Option("--audio", help="With the sounds of the songs")] = False,
        raters: Annotated[
            bool, typer.Option("--raters", help="With pseudonyms, groups, comments and times of raters")
        ] = False,
        commercial: Annotated[
            bool, typer.Option("--commercial", help="Only what may be used commercially")
        ] = False,
    ) -> None:
        with errors():
            recipe = import_module("diffdpo.recipes.store")
            options = recipe.StoreExportOptions(raters=raters, audio=sounds, commercial=commercial, name=name)
            typer.echo("\n".join(recipe.export_from_store(_path(store), _path(out), options)))


def _register_forget(group: typer.Typer, errors: _Errors) -> None:
    @group.command("forget", help="Delete a rater, song, vote or source; name what contained it elsewhere.")
    def forget_command(
        store: StoreFolder,
        rater: Annotated[str, typer.Option(help="Pseudonym")] = "",
        song: Annotated[str, typer.Option(help="Hash of the sound (sha256)")] = "",
        vote: Annotated[str, typer.Option(help="Id of a vote or an opinion")] = "",
        source: Annotated[str, typer.Option(help="A study or data set; or whose rater or vote it is")] = "",
        runs: Runs = None,
    ) -> None:
        with errors():
            selection = import_module("diffdpo.data.store.forgetting").check_selection(
                rater=rater, song=song, vote=vote, source=source
            )
            recipe = import_module("diffdpo.recipes.store")
            typer.echo("\n".join(recipe.forget_in_store(_path(store), selection, _paths(runs))))
