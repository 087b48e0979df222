"""The command line: a verb, a preset or a YAML file, `key=value`. Heavy imports wait until a verb runs."""

import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from diffdpo import __version__
from diffdpo.config_paths import expand_path
from diffdpo.errors import UserError, plain
from diffdpo.torchao_import import deferred_torchao

VERBS = {
    "prepare": ("PrepareRun", "Songs to latents and embeddings: a dataset."),
    "sample": ("SampleRun", "Prompts to songs."),
    "search": ("SearchRun", "The best songs of each prompt by a reward, at a cost."),
    "score": ("ScoreRun", "Songs to scores on several axes."),
    "mine": ("MineRun", "Scores to preference pairs and ratings."),
    "train": (
        "TrainRun",
        "Optimise a song model on songs, pairs, ratings or prompts; the same command again resumes.",
    ),
    "evaluate": (
        "EvaluateRun",
        "Compare two models on the same prompts and seeds, with intervals; a report.",
    ),
    "sliders": ("SlidersRun", "Every slider of a file: an adapter each, from prompts alone, calibrated."),
    "calibrate": ("CalibrateRun", "What an adapter changes at several strengths: the scale of a slider."),
    "adapt": (
        "AdaptRun",
        "Songs that follow one listener: ratings move a knob of the sampler between rounds.",
    ),
    "audit": ("AuditRun", "Whether axes measure what they claim, on songs, worse songs and real songs."),
    "listen": ("ListenRun", "A listening test in the browser: songs to votes and opinions of listeners."),
    "votes": ("VotesRun", "Listeners' votes to a ranking with intervals, and to pairs and ratings."),
    "monitor": ("MonitorRun", "Whether a reward model still fits its listeners: alarms, and what to do."),
    "round": ("RoundRun", "Sample, score, mine, train and evaluate in turn, once or several times."),
    "demo": ("RoundRun", "One round on the shipped tiny model: offline, without a GPU, in minutes."),
}
"""For each verb the dataclass of its configuration in `diffdpo.recipes.VERB`, and its help."""

app = typer.Typer(
    help="Post-train full-length-song diffusion models on preferences.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[
    str | None,
    typer.Argument(help="A preset such as tiny/dpo, or a YAML file", metavar="[CONFIG]"),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, over the configuration", metavar="[KEY=VALUE]...")
]
Device = Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu; the same as device=…")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
Ranks = Annotated[
    int | None,
    typer.Option(help="With --dry-run: also print what each of so many processes would do, and its launch."),
]
PerNode = Annotated[int, typer.Option(help="With --ranks: processes on each machine.")]
Backend = Annotated[str, typer.Option(help="With --ranks: ddp, zero1, zero2, zero3 or fsdp2.")]
Offload = Annotated[bool, typer.Option("--offload", help="With --ranks: the optimiser on the CPU.")]

FULL_OR_FORBIDDEN = {
    errno.ENOSPC: "no space left; free some and run the same command again, what is finished is kept",
    errno.EDQUOT: "disk quota exceeded; free some space and run the same command again, what is finished is kept",
    errno.EFBIG: "larger than a file may be here (ulimit -f); raise the limit and run the same command again",
    errno.EACCES: "permission denied; choose another out=… or change the permissions",
    errno.EROFS: "read-only file system; choose another out=…",
    errno.EEXIST: "a file stands where a folder is needed; choose another out=…",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another out=…",
    errno.EISDIR: "a folder stands where a file is needed; choose another out=…",
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """The user's mistakes are one line and exit code 2; ours keep their traceback."""
    try:
        yield
    except UserError as error:
        _exit(str(error), error.exit_code)
    except EOFError as error:  # the command line's library would print the word "Aborted!" and nothing else
        raise RuntimeError("a file or a process ended too early") from error
    except OSError as error:
        if error.errno not in FULL_OR_FORBIDDEN:
            raise
        _exit(f"{error.filename or 'output'}: {FULL_OR_FORBIDDEN[error.errno]}")
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from what is finished", err=True)
        raise typer.Exit(130) from None


def _exit(message: str, code: int = 2) -> None:
    typer.echo(f"error: {' '.join(plain(message).split())}", err=True)
    raise typer.Exit(code) from None


def load_config(verb: str, source: str | None, words: list[str] | None) -> Any:
    """The checked configuration of a verb. Without a preset the first argument may already be `key=value`."""
    words = list(words or [])
    if source is not None and "=" in source:
        words, source = [source, *words], None
    source = source if source is None else expand_path(source)
    recipe = import_module(f"diffdpo.recipes.{verb}")
    from diffdpo import config

    cfg = config.build_config(getattr(recipe, VERBS[verb][0]), source, words, verb)
    cfg.check_parts()
    return cfg


def set_device(
    source: str | None, words: list[str] | None, device: str
) -> tuple[str | None, list[str] | None]:
    """The arguments of a verb without `device=…`, which goes into the environment: it belongs to no run.

    ConfigError for a device that is not there. Processes that the verb starts have the device too.
    """
    sign = "device="
    names = [word.removeprefix(sign) for word in (source, *(words or ())) if word and word.startswith(sign)]
    if device or names:
        from diffdpo.devices import DEVICE, choose_device

        name = device or names[-1]
        choose_device(name)
        os.environ[DEVICE] = name
    words = [word for word in words or () if not word.startswith(sign)]
    return (None if source and source.startswith(sign) else source), words


def _verb(verb: str) -> Callable[..., None]:
    """The command of a verb."""

    def command(
        source: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False, device: Device = ""
    ) -> None:
        with one_line_errors():
            source, overrides = set_device(source, overrides, device)
            cfg = load_config(verb, source, overrides)
            if dry_run:
                from diffdpo import config

                typer.echo(config.to_yaml(cfg).rstrip())
                return
            gc.enable()
            import_module(f"diffdpo.recipes.{verb}").run(cfg)
            import_module("diffdpo.run_dir").shutdown()

    return command


def _train(
    source: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    device: Device = "",
    ranks: Ranks = None,
    per_node: PerNode = 8,
    backend: Backend = "",
    offload: Offload = False,
) -> None:
    """The verb `train`, whose dry run has a plan of several processes."""
    with one_line_errors():
        if ranks is None and (backend or offload or per_node != 8):
            raise UserError("--per-node, --backend and --offload belong to --dry-run with --ranks")
        if ranks is not None and not dry_run:
            raise UserError("--ranks belongs to --dry-run; processes are launched by accelerate or torchrun")
    if ranks is None:
        _verb("train")(source, overrides, dry_run, device)
        return
    with one_line_errors():
        command = " ".join([*([source] if source else []), *(overrides or [])])
        source, overrides = set_device(source, overrides, device)
        cfg = load_config("train", source, overrides)
        import_module("diffdpo.commands_training").print_plan(
            cfg, command, ranks=ranks, per_node=per_node, backend=backend, offload=offload
        )


for _name, (_, _help) in VERBS.items():
    app.command(_name, help=_help)(_train if _name == "train" else _verb(_name))


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


from diffdpo import commands  # noqa: E402 - they add themselves to the app


@contextmanager
def _one_line_errors_of_commands() -> Iterator[None]:
    gc.enable()
    with one_line_errors():
        yield


commands.register(app, _one_line_errors_of_commands)


def main() -> None:
    """The program. Threads that wait for each other sleep: by default they spin, which on a machine with other work
    costs four times the processor time of the work itself. OpenMP reads the variable when torch is loaded.

    No garbage is collected before a verb runs: what imports make stays, and looking through it is a tenth of the
    time that a command takes to start.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()
    for stream in (sys.stdout, sys.stderr):  # a name or a word that the terminal cannot show is escaped
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with deferred_torchao():
        sys.exit(app())
