"""The command line: a verb, a YAML, `key=value`. Heavy imports wait until a verb runs, so --help is instant."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from diffdpo import __version__
from diffdpo.errors import UserError

app = typer.Typer(
    help="Post-train full-length-song diffusion models on preferences.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
lyrics_app = typer.Typer(help="Check lyrics before singing them, or give them times.", no_args_is_help=True)
app.add_typer(lyrics_app, name="lyrics")

ConfigFile = Annotated[
    str | None, typer.Argument(help="YAML configuration; presets are in configs/", metavar="[CONFIG]")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, over the YAML", metavar="[KEY=VALUE]...")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]

FULL_OR_FORBIDDEN = {
    errno.ENOSPC: "no space left; free some and run the same command again, what is finished is kept",
    errno.EDQUOT: "disk quota exceeded; free some space and run the same command again, what is finished is kept",
    errno.EACCES: "permission denied; choose another out=… or change the permissions",
    errno.EROFS: "read-only file system; choose another out=…",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another out=…",
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """The user's mistakes are one line and exit code 2; ours keep their traceback."""
    try:
        yield
    except UserError as error:
        _die(str(error))
    except OSError as error:
        if error.errno not in FULL_OR_FORBIDDEN:
            raise
        _die(f"{error.filename or 'output'}: {FULL_OR_FORBIDDEN[error.errno]}")
    except KeyboardInterrupt:
        typer.echo("stopped; the same command continues", err=True)
        raise typer.Exit(130) from None


def _die(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(2) from None


def _run(verb: str, path: str | None, overrides: list[str] | None, dry_run: bool) -> None:
    from importlib import import_module

    words = list(overrides or [])
    if path is not None and "=" in path:  # no YAML, only key=value
        words = [path, *words]
        path = None
    with one_line_errors():
        from diffdpo import config

        cfg: Any = config.load(config.SCHEMAS[verb], path, words)
        config.check(cfg)
        if dry_run:
            typer.echo(config.to_yaml(cfg).rstrip())
            return
        import_module(f"diffdpo.recipes.{verb}").run(cfg)
        import_module("diffdpo.run_dir").leave()


@app.command()
def prepare(path: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Songs to latents, styles and lyric tokens."""
    _run("prepare", path, overrides, dry_run)


@app.command()
def sample(path: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Prompts to songs."""
    _run("sample", path, overrides, dry_run)


@app.command()
def score(path: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Songs to scores on several axes."""
    _run("score", path, overrides, dry_run)


@app.command()
def mine(path: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Scores to preference pairs."""
    _run("mine", path, overrides, dry_run)


@app.command()
def train(path: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Optimise a song model on songs or preference pairs; the same command again resumes."""
    _run("train", path, overrides, dry_run)


@app.command()
def evaluate(path: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Compare two models on the same prompts and seeds, with intervals, and write a report."""
    _run("evaluate", path, overrides, dry_run)


@app.command("round")
def round_(path: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Sample, score, mine, train and evaluate in turn, once or several times."""
    _run("round", path, overrides, dry_run)


@app.command()
def demo(path: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """One round on the shipped tiny model: offline, without a GPU, in minutes."""
    _run("demo", path, overrides, dry_run)


@lyrics_app.command("check")
def lyrics_check(
    path: Annotated[str, typer.Argument(help="An LRC file")],
    duration: Annotated[float | None, typer.Option(help="Length of the song in seconds")] = None,
    vocab: Annotated[
        str,
        typer.Option(help="The checkpoint's vocab.json: show phonemes", envvar="DIFFDPO_DIFFRHYTHM_VOCAB"),
    ] = "",
    language: Annotated[str | None, typer.Option(help="en or zh, for lines of digits")] = None,
) -> None:
    """Show the lines that would be sung, and what is wrong with the others."""
    with one_line_errors():
        from diffdpo.recipes.lyrics import check

        check(path, duration, vocab, language)


@lyrics_app.command("plan")
def lyrics_plan(
    path: Annotated[str, typer.Argument(help="Lyrics, one line each; [verse] and [chorus] tags if you like")],
    duration: Annotated[float, typer.Option(help="Length of the song in seconds")],
    tempo: Annotated[float, typer.Option(help="Beats a minute")] = 100.0,
    out: Annotated[str, typer.Option(help="The LRC file to write; without, it is printed")] = "",
    force: Annotated[bool, typer.Option("--force", help="Write over an LRC that exists")] = False,
) -> None:
    """Give every line of untimed lyrics a time: an LRC to edit and to sing."""
    with one_line_errors():
        from diffdpo.recipes.lyrics import make_plan

        make_plan(path, duration, tempo, out, force)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The program."""
    sys.exit(app())
