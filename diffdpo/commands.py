"""Commands that need no configuration file, from one song to a GPU check."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffdpo import (
    commands_evaluation,
    commands_reward,
    commands_search,
    commands_servers,
    commands_store,
    commands_training,
)
from diffdpo.config_paths import expand_path
from diffdpo.errors import ConfigError

Errors = Callable[[], AbstractContextManager[None]]


def _local(path: str | Path) -> Path:
    """A path of the command line, `~` and variables expanded."""
    return Path(expand_path(str(path)))


def _build_settings(schema: Callable[..., Any], **values: Any) -> Any:
    """The settings of a command; ConfigError for a value out of its range."""
    try:
        return schema(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def register(app: typer.Typer, errors: Errors) -> None:
    """Add the commands to an app; `errors` turns the user's mistakes into one line."""
    _register_presets(app, errors)
    _register_song(app, errors)
    _register_convert(app, errors)
    _register_ratings(app, errors)
    _register_export_pairs(app, errors)
    _register_perturb(app, errors)
    _register_check_data(app, errors)
    _register_gpu_check(app, errors)
    commands_training.register_training(app, errors)
    commands_evaluation.register_evaluation(app, errors)
    commands_search.register_search(app, errors)
    commands_reward.register_reward(app, errors)
    commands_store.register_store(app, errors)
    commands_servers.register_servers(app, errors)
    _register_lyrics(app, errors)


def _register_presets(app: typer.Typer, errors: Errors) -> None:
    @app.command("presets", help="List the presets, or print where one is.")
    def presets_command(
        name: Annotated[str, typer.Argument(help="A preset: print its path")] = "",
        export: Annotated[
            str, typer.Option(help="Copy all presets into this folder, to be changed there")
        ] = "",
    ) -> None:
        with errors():
            from diffdpo.recipes.presets import copy_presets, list_presets, preset_path

            if export:
                copy_presets(_local(export))
            elif name:
                typer.echo(preset_path(name))
            else:
                typer.echo("\n".join(list_presets()))


def _register_song(app: typer.Typer, errors: Errors) -> None:
    @app.command("song", help="One song of any length from a text.")
    def song_command(  # noqa: PLR0913 - each is an option
        text: Annotated[str, typer.Argument(help="The style, in words")],
        out: Annotated[Path, typer.Argument(help="A .flac or .wav file")],
        seconds: Annotated[float, typer.Option(help="Length")] = 30.0,
        seed: int = 0,
        steps: int = 12,
        guidance: Annotated[float, typer.Option(help="Guidance scale")] = 5.0,
        window: Annotated[float, typer.Option(help="Seconds; 0: the longest the model takes")] = 0.0,
        overlap: Annotated[float, typer.Option(help="Seconds that windows share")] = 6.0,
        method: Annotated[
            Literal["continue", "joint"], typer.Option(help="How windows are joined")
        ] = "continue",
        model: str = "tiny",
        arg: Annotated[
            list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the model; may be repeated")
        ] = None,
    ) -> None:
        with errors():
            from diffdpo.recipes.song import SongSettings, write_one_song

            settings = _build_settings(
                SongSettings,
                seconds=seconds, seed=seed, steps=steps, guidance_scale=guidance, window_s=window,
                overlap_s=overlap, method=method, model=model, model_args=tuple(arg or ()),
            )  # fmt: skip
            typer.echo(write_one_song(text, _local(out), settings))


def _register_convert(app: typer.Typer, errors: Errors) -> None:
    @app.command(
        "convert", help="DiffRhythm checkpoints between published layouts and our folders, bit for bit."
    )
    def convert_command(
        source: Annotated[str, typer.Argument(help="Anything a model's `checkpoint` may be")],
        target: Annotated[
            Path, typer.Argument(help="cfm_model.pt, a .safetensors file, or a folder to be made")
        ],
        release: Annotated[str, typer.Option(help="Which model SOURCE is, where it does not tell")] = "",
        ema: Annotated[
            bool, typer.Option("--ema", help="The moving average of a training checkpoint")
        ] = False,
        adapter: Annotated[str, typer.Option(help="LoRA adapters to merge: A,B or A@0.5,B@0.5")] = "",
        keep_adapter: Annotated[
            bool, typer.Option("--keep-adapter", help="Write the adapter beside the network")
        ] = False,
        dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep",
    ) -> None:
        with errors():
            from diffdpo.recipes.convert import Conversion, convert

            convert(
                Conversion(
                    source=expand_path(source), target=_local(target), release=release, ema=ema,
                    adapter=expand_path(adapter, separator=","),
                    keep_adapter=keep_adapter, dtype=dtype,
                )
            )  # fmt: skip
            typer.echo(_local(target))


def _register_ratings(app: typer.Typer, errors: Errors) -> None:
    @app.command("import-ratings", help="Thumbs and stars of people to ratings that can be trained on.")
    def import_ratings_command(
        opinions: Annotated[
            Path, typer.Argument(help="CSV with a header, or .jsonl: docs/howto/feedback.md")
        ],
        samples: Annotated[
            list[str], typer.Option(help="Folder that `diffdpo sample` wrote; may be repeated")
        ],
        out: Annotated[Path, typer.Option(help="Folder of the ratings; train with data.ratings=")],
        source: Annotated[
            str, typer.Option(help="Whose ratings these are; the same name replaces them")
        ] = "people",
        keep_raters: Annotated[
            bool, typer.Option("--keep-raters", help="A row for each rater instead of their mean")
        ] = False,
        centre: Annotated[float, typer.Option(help="Stars above it are liked, below it disliked")] = 3.0,
    ) -> None:
        with errors():
            from diffdpo.data.feedback import import_ratings

            summary = import_ratings(
                _local(opinions),
                [str(_local(folder)) for folder in samples],
                _local(out),
                source=source,
                keep_raters=keep_raters,
                centre=centre,
            )
            typer.echo("\n".join(summary.lines()))


def _register_export_pairs(app: typer.Typer, errors: Errors) -> None:
    @app.command("export-pairs", help="Mined pairs as preferences between plans, for trainers of planners.")
    def export_pairs_command(
        pairs: Annotated[Path, typer.Argument(help="Folder that `diffdpo mine` wrote", metavar="FOLDER")],
        layout: Annotated[str, typer.Option("--for", help="The trainer they are for: trl")],
        out: Annotated[Path, typer.Option(help="File to write, JSON lines")],
        planner: Annotated[str, typer.Option(help="Only plans of this state of the planner")] = "",
    ) -> None:
        with errors():
            from diffdpo.recipes.export_pairs import PairExport, export_pairs

            settings = PairExport(pairs=_local(pairs), out=_local(out), layout=layout, planner=planner)
            typer.echo("\n".join(export_pairs(settings).lines()))


def _register_perturb(app: typer.Typer, errors: Errors) -> None:
    @app.command("perturb", help="Perturb real songs in known ways and print by how much every axis moves.")
    def perturb_command(
        songs: Annotated[Path, typer.Argument(help="A manifest with splits, or a folder of songs")],
        split: str = "test",
        n_perturbed: Annotated[
            int, typer.Option("--perturbed", help="Songs that are perturbed; at least two")
        ] = 20,
        n_decoded: Annotated[
            int, typer.Option("--decoded", help="Songs set against the codec's; 0 for none")
        ] = 20,
        seconds: Annotated[float, typer.Option(help="Length of the excerpt of each")] = 10.0,
        scorers: Annotated[str, typer.Option(help="Names, comma-separated")] = "",
        model: Annotated[str, typer.Option(help="Whose codec is used")] = "tiny",
    ) -> None:
        with errors():
            from diffdpo.recipes.perturb import PerturbationSettings, perturb_songs

            settings = _build_settings(
                PerturbationSettings,
                split=split, n_perturbed=n_perturbed, n_decoded=n_decoded, seconds=seconds, model=model,
                scorers=tuple(name for name in scorers.split(",") if name),
            )  # fmt: skip
            for table in perturb_songs(_local(songs), settings):
                typer.echo(f"{table}\n")


def _register_check_data(app: typer.Typer, errors: Errors) -> None:
    @app.command("check-data", help="What is wrong with a folder of songs, before hours are spent on it.")
    def check_data_command(
        songs: Annotated[
            Path, typer.Argument(help="A folder of songs with what stands beside, or a manifest")
        ],
        out: Annotated[str, typer.Option(help="A JSON file with all checks and estimates")] = "",
    ) -> None:
        with errors():
            from dataclasses import asdict

            from diffdpo.recipes.check_data import check_songs, table
            from diffdpo.runs import write_json

            checks = check_songs(_local(songs))
            if out:
                write_json(_local(out), [asdict(check) for check in checks])
            for line in table(checks):
                typer.echo(line)


def _register_gpu_check(app: typer.Typer, errors: Errors) -> None:
    @app.command(
        "gpu-check", help="On a machine with a GPU: same numbers as a CPU, speed, memory. JSON and a table."
    )
    def gpu_check_command(
        out: Annotated[Path, typer.Option(help="Folder of gpu_check.json and gpu_check.md")] = Path("out"),
        minutes: Annotated[float, typer.Option(help="Time for all parts, the most important first")] = 8.0,
        part: Annotated[
            list[str] | None, typer.Option(help="Parts whose names begin so; may be repeated")
        ] = None,
        device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu; by default the GPU")] = "",
        small: Annotated[
            bool, typer.Option("--small", help="Tiny networks: whether the command itself works")
        ] = False,
    ) -> None:
        with errors():
            from diffdpo.recipes.gpu_check import GpuCheck, gpu_check

            settings = _build_settings(
                GpuCheck, device=device, small=small, minutes=minutes, out=str(_local(out)),
                parts=tuple(part or ()),
            )  # fmt: skip
            typer.echo(gpu_check(settings))


def _register_lyrics(app: typer.Typer, errors: Errors) -> None:
    lyrics_app = typer.Typer(
        help="Check lyrics before singing them, or give them times.", no_args_is_help=True
    )
    app.add_typer(lyrics_app, name="lyrics")

    @lyrics_app.command("check", help="Show the lines that would be sung, and what is wrong with the others.")
    def check_command(
        path: Annotated[str, typer.Argument(help="An LRC file")],
        duration: Annotated[float | None, typer.Option(help="Length of the song in seconds")] = None,
        vocab: Annotated[
            str,
            typer.Option(
                help="The checkpoint's vocab.json: show phonemes", envvar="DIFFDPO_DIFFRHYTHM_VOCAB"
            ),
        ] = "",
        language: Annotated[str | None, typer.Option(help="en or zh, for lines of digits")] = None,
    ) -> None:
        with errors():
            from diffdpo.recipes.lyrics import check_lyrics

            check_lyrics(expand_path(path), duration, expand_path(vocab), language)

    @lyrics_app.command("plan", help="Give every line of untimed lyrics a time: an LRC to edit and to sing.")
    def plan_command(
        path: Annotated[
            str, typer.Argument(help="Lyrics, one line each; [verse] and [chorus] tags if you like")
        ],
        duration: Annotated[float, typer.Option(help="Length of the song in seconds")],
        tempo: Annotated[float, typer.Option(help="Beats a minute")] = 100.0,
        out: Annotated[str, typer.Option(help="The LRC file to write; without, it is printed")] = "",
        force: Annotated[bool, typer.Option("--force", help="Write over an LRC that exists")] = False,
    ) -> None:
        with errors():
            from diffdpo.recipes.lyrics import make_plan

            make_plan(expand_path(path), duration, tempo, expand_path(out), force)
