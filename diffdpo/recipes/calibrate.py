"""The verb `calibrate`: what an adapter does at several strengths, on prompts that it was not trained on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from diffdpo.checks import check_range, check_seed
from diffdpo.config_paths import INPUT_FILE, PATH
from diffdpo.data.prompts import read_prompts
from diffdpo.data.samples import open_samples
from diffdpo.data.song_scores import join_scores, read_scores
from diffdpo.errors import CheckpointError, DataError, ensure
from diffdpo.evaluation.strength import StrengthResponse, fit_response
from diffdpo.inputs import content_digest
from diffdpo.parts import build_scorers, check_model, model_digest
from diffdpo.progress import bar, log
from diffdpo.recipes import sample, score
from diffdpo.recipes.next_model import next_model
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.score import ScoreRun
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv, dist_env, open_run
from diffdpo.runs import finish, is_finished, read_json, write_if_changed, write_json
from diffdpo.sampling.config import SamplingConfig
from diffdpo.scorers import DEFAULT_SCORERS
from diffdpo.scorers.axes import check_axis_names
from diffdpo.training.config import result_folder

CALIBRATION, TABLE, MEASURES_FILE = "calibration.json", "calibration.md", "measures.json"
SOUND_AXES = tuple(
    f"sound.{name}"
    for name in (
        "tempo_bpm", "centroid_octaves", "onsets_per_s", "punch", "mode", "width_db", "dynamics_db",
    )
)  # fmt: skip
"""Measures of the sound that say how much, not how good: the words slow and fast, dark and bright, sparse and busy,
smooth and punchy, minor and major, narrow and wide, even and dynamic stand for them."""


@dataclass
class CalibrateRun:
    """Songs at several strengths of an adapter, with the same seeds; their change on every axis."""

    out: str = field(default=MISSING, metadata=PATH)
    adapter: str = field(default=MISSING, metadata=PATH)
    """A run directory of `train`, or the folder of an adapter."""
    prompts: str = field(default=MISSING, metadata=INPUT_FILE)
    """Prompts that the adapter was not trained on; intervals need eight."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    """The model without the adapter."""
    axes: list[str] = field(default_factory=list)
    """What the adapter is for: axes of `scorers`, or measures of the sound such as sound.tempo_bpm. All others are
    side effects."""
    strengths: list[float] = field(default_factory=lambda: [-1.0, -0.5, 0.5, 1.0, 2.0])
    """Beside 0, which is always sampled."""
    scorers: list[Any] = field(default_factory=lambda: list(DEFAULT_SCORERS))
    """Names, or {name: …, args: {…}} for those with arguments."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    per_prompt: int = 1
    """Songs for each prompt at each strength."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "per_prompt", low=1)
        check_seed(self, "seed")
        ensure(
            bool(self.strengths)
            and all(math.isfinite(s) and s != 0 for s in self.strengths)
            and len(set(self.strengths)) == len(self.strengths),
            f"strengths must be different numbers other than 0, got {self.strengths}",
        )

    def check_parts(self) -> None:
        """ConfigError for a part, an argument or an axis that does not exist, before anything is loaded."""
        build_scorers(self.scorers)
        check_model(self.model)
        check_axis_names(self.axes, "axes", SOUND_AXES)


def run(cfg: CalibrateRun) -> Path:
    """Sample and score what is not there yet, and write the calibration."""
    adapter, prompts = adapter_folder(Path(cfg.adapter)), read_prompts(cfg.prompts)
    dist = dist_env()
    inputs = {"adapter": content_digest(adapter), "model": model_digest(cfg.model)}
    with open_run(cfg, free=("axes", "adapter", "sampling.batch"), inputs=inputs, dist=dist) as out:
        folders = _sample(cfg, adapter, out)
        score.run(
            ScoreRun(
                samples=[str(folder) for folder in folders.values()],
                out=str(out / "scores"),
                scorers=cfg.scorers,
            )
        )
        if dist.main:
            groups = {prompt.id: prompt.group for prompt in prompts}
            axes = [axis for scorer in build_scorers(cfg.scorers).values() for axis in scorer.axes]
            responses = _responses(_values(folders, out), folders, groups, (*axes, *SOUND_AXES))
            _write(cfg, responses, out, dist)
        dist.barrier()
    return out


def adapter_folder(path: Path) -> Path:
    """The folder of an adapter: the result of a finished training run, or the path as it is."""
    if not (path / "checkpoints").is_dir():
        if not path.exists():
            raise CheckpointError(f"{path}: no such adapter; train one first with `diffdpo train`")
        return path
    if not is_finished(path):
        raise CheckpointError(f"{path}: this run of training has not finished; run the same command again")
    return result_folder(path)


def _sample(cfg: CalibrateRun, adapter: Path, out: Path) -> dict[float, Path]:
    """The folders of the songs at each strength, 0 among them."""
    folders = {}
    for strength in sorted({0.0, *cfg.strengths}):
        model = next_model(cfg.model, adapter, lora=True, strength=strength) if strength else cfg.model
        stage = SampleRun(
            out=str(out / "songs" / f"strength_{strength:g}"),
            prompts=cfg.prompts,
            model=model,
            sampling=cfg.sampling,
            per_prompt=cfg.per_prompt,
            seed=cfg.seed,
        )
        folders[strength] = sample.run(stage, free=("model",))
    return folders


def _values(folders: Mapping[float, Path], out: Path) -> dict[float, dict[str, dict[str, float]]]:
    """The value of every song on every axis and measure, at each strength."""
    scores, values = read_scores(out / "scores"), {}
    cached: dict[str, dict[str, float]] = {}
    if (out / MEASURES_FILE).is_file():
        cached = read_json(out / MEASURES_FILE)
    rows = {strength: open_samples(folder).rows() for strength, folder in folders.items()}
    sounds = {
        row.sha256: open_samples(folders[s]).audio(row.sample_id)
        for s in rows
        for row in rows[s]
        if row.sha256
    }
    with bar("measure", len(sounds), "song", n_done=len(sounds.keys() & cached.keys())) as progress:
        for sha256, path in sounds.items():
            if sha256 not in cached:
                cached[sha256] = _measure(path)
                progress.advance(1)
    write_json(out / MEASURES_FILE, {sha256: cached[sha256] for sha256 in sorted(sounds)})
    for strength, folder in folders.items():
        samples = open_samples(folder)
        values[strength] = join_scores(scores, samples, samples.prompts()).by_song()
        for row in rows[strength]:
            values[strength].setdefault(row.sample_id, {}).update(cached.get(row.sha256, {}))
    return values


def _measure(path: Path) -> dict[str, float]:
    """The measures of the sound of a file, as axes."""
    from diffdpo import audio
    from diffdpo.encoders.descriptors import measure

    return {f"sound.{name}": value for name, value in measure(audio.read(path)).items()}


def _responses(
    values: Mapping[float, Mapping[str, Mapping[str, float]]],
    folders: Mapping[float, Path],
    groups: Mapping[str, str],
    axes: Sequence[str],
) -> list[StrengthResponse]:
    """The response of each of these axes that has one."""
    clusters = {row.sample_id: groups[row.prompt_id] for row in open_samples(folders[0.0]).rows()}
    responses = (
        fit_response(
            axis,
            {
                strength: {song: by_axis[axis] for song, by_axis in songs.items() if axis in by_axis}
                for strength, songs in values.items()
            },
            clusters,
        )
        for axis in axes
    )
    return [response for response in responses if response is not None]


def _write(cfg: CalibrateRun, responses: Sequence[StrengthResponse], out: Path, dist: DistEnv) -> None:
    """The calibration as JSON and as a table, and on the terminal what the adapter is for."""
    names = {response.axis for response in responses}
    for axis in cfg.axes:
        if axis not in names:
            raise DataError(f"{out}: no scores of {axis}; name its scorer in scorers")
    order = sorted(responses, key=lambda r: (r.axis not in cfg.axes, -abs(r.slope.value)))
    write_json(
        out / CALIBRATION,
        {
            "axes": list(cfg.axes),
            "responses": [
                {**asdict(r), "monotone": r.is_monotone, "measured": r.is_measured, "sentence": r.sentence}
                for r in order
            ],
        },
    )
    write_if_changed(out / TABLE, f"{calibration_text(out)}\n")
    for response in order:
        if response.axis in cfg.axes:
            log(response.sentence)
    side_effects = [r.axis for r in order if r.is_measured and r.axis not in cfg.axes]
    if side_effects:
        log(f"what else moves with it: {', '.join(side_effects)}")
    log(f"{out / TABLE}: all axes")
    finish(out, prompts=max((r.prompts for r in responses), default=0), world=dist.count)


def calibration_text(folder: Path) -> str:
    """The calibration of an adapter in Markdown: a sentence for what it is for, and a table of all axes."""
    path = folder / CALIBRATION
    if not path.is_file():
        raise DataError(f"{folder}: holds no {CALIBRATION}; run `diffdpo calibrate` first")
    content = read_json(path)
    try:
        rows, axes = content["responses"], set(content["axes"])
        sentences = [f"* {row['sentence']}" for row in rows if row["axis"] in axes]
        strengths = rows[0]["strengths"] if rows else []
        head = ["axis", "change per unit, 95 %", "usable", *(f"at {s:g}" for s in strengths)]
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for row in rows:
            slope, usable = row["slope"], f"{row['low']:g} to {row['high']:g}" if row["measured"] else ""
            name = f"**{row['axis']}**" if row["axis"] in axes else row["axis"]
            cells = [name, f"{slope['value']:+.2f} ({slope['low']:+.2f} to {slope['high']:+.2f})", usable]
            cells += [f"{change['value']:+.2f}" for change in row["changes"]]
            lines.append(f"| {' | '.join(cells)} |")
    except (KeyError, TypeError, ValueError, IndexError):
        raise DataError(f"{path}: no calibration of `diffdpo calibrate`") from None
    note = "Changes are in standard deviations of the songs without the adapter; intervals are over prompts."
    return "\n".join([*sentences, *([""] if sentences else []), note, "", *lines])
