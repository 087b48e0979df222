"""Models made from the songs of one finished round: other pairs, objectives and strengths, the same candidates.

A model is a run of `diffdpo round` in a folder of its own that begins with the candidates, the base's evaluation
songs and all scores of the source. So only mining, training and the aligned model's songs are new, and a run
that was stopped goes on.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from diffdpo.config import build_config
from diffdpo.data.samples import open_samples
from diffdpo.models.adapters import parse_adapters
from diffdpo.recipes import evaluate, sample, score
from diffdpo.recipes import round as rounds
from diffdpo.recipes.evaluate import EvaluateRun
from diffdpo.recipes.round import RoundRun
from diffdpo.registry import Choice
from diffdpo.runs import CONFIG, MANIFEST, atomic_write, is_finished, read_json
from diffdpo.text_files import read_text

SHARED_FOLDERS = ("baseline", "round-1/candidates", "scores")
"""What a model has in common with its source."""
CONTENT_FOLDERS = ("audio", "latents", "pictures")
"""Folders of files that are never written again, which are linked and not copied."""


REPORT = {"evaluate.listen": 0, "evaluate.drift": 0, "evaluate.diversity": False}
"""The report of a run whose verdict is measured apart."""


@dataclass(frozen=True)
class AlignedModel:
    """A recipe: what differs from the source's configuration."""

    name: str
    method: str
    """The recipe in a few words."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted key. A mapping replaces the whole one that was there."""


def check_source(source: Path) -> None:
    """Ends the program unless the folder holds a finished run of `diffdpo round` or `demo`."""
    if not is_finished(source):
        raise SystemExit(f"error: {source}: not a finished run; make one with `diffdpo demo out={source}`")


def changed_config(source: Path, folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a source with changes, for a run in `folder` without a long song, whose report measures
    what scores say alone: `compare_model` measures the rest."""
    config: dict[str, Any] = deepcopy(yaml.safe_load(read_text(source / CONFIG)))
    own = {"out": str(folder.resolve()), "long_song_s": 0.0}
    for key, value in {**REPORT, **changes, **own}.items():
        *parents, name = key.split(".")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = deepcopy(value)
    return config


def run_model(model: AlignedModel, source: Path, folder: Path) -> Path:
    """The folder of a model's finished run, made or continued from the songs of the source."""
    if is_finished(folder):
        return folder
    link_songs(source, folder)
    path = folder.with_name(f"{folder.name}.yaml")
    atomic_write(path, yaml.safe_dump(changed_config(source, folder, model.changes), sort_keys=False))
    return rounds.run(build_config(RoundRun, path, []))


def link_songs(source: Path, folder: Path) -> None:
    """Begin a run with the songs and scores of another. Configurations stay behind, since they name its folders."""
    for name in SHARED_FOLDERS:
        if (folder / name).exists():
            continue
        partial = folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(
            source / name,
            partial,
            copy_function=_link_content,
            ignore=shutil.ignore_patterns(CONFIG, "index.html", ".lock*"),
        )
        partial.rename(folder / name)


def round_config(run: Path) -> RoundRun:
    """The configuration of a finished run."""
    return build_config(RoundRun, run / CONFIG, [])


def report_round(run: Path) -> Path:
    """The folder of the round that a run's report is of: the best, or the last if none is."""
    manifest = read_json(run / MANIFEST)
    return run / f"round-{manifest['best'] or manifest['rounds']}"


def aligned_choice(run: Path, strength: float = 1.0) -> Choice:
    """The aligned model of a run, the strength of its newest adapter multiplied by this factor."""
    values: dict[str, Any] = json.loads(open_samples(report_round(run) / "aligned").rows()[0].model)
    name = values.pop("name")
    if strength == 1:
        return Choice(name, values)
    if not isinstance(values.get("adapter"), str):
        raise SystemExit(f"error: {run}: strengths are of one adapter, and this model has none")
    ((path, own_strength),) = parse_adapters(values["adapter"])
    return Choice(name, {**values, "adapter": f"{path}@{own_strength * strength:g}"})


def sample_songs(run: Path, choice: Choice, out: Path, per_prompt: int) -> Path:
    """Songs of a model on the evaluation prompts, as the run samples them; more of them later cost only the new."""
    cfg = round_config(run)
    stage = replace(
        cfg.sample, out=str(out), prompts=cfg.evaluation_prompts, model=choice, per_prompt=per_prompt,
        seed=cfg.seed,
    )  # fmt: skip
    return sample.run(stage, free=("per_prompt",))


def score_songs(run: Path, folders: Sequence[Path], out: Path) -> Path:
    """Scores of songs, by the scorers of the run."""
    stage = round_config(run).score
    names = [str(folder) for folder in folders]
    return score.run(replace(stage, samples=names, out=str(out), window_s=0.0, hop_s=0.0))


def compare_model(run: Path, out: Path, aligned: Path | None = None, scores: Path | None = None) -> Any:
    """The report of a run's aligned model, or of other songs of it, against the base, with the whole verdict."""
    if not is_finished(out):
        folder = report_round(run)
        stage = EvaluateRun(
            baseline=str(run / "baseline"), aligned=str(aligned or folder / "aligned"),
            scores=str(scores or run / "scores"), out=str(out), pairs=str(folder / "pairs"),
            training=str(folder / "train"), candidates=str(run / "round-1" / "candidates"), listen=0,
            drift_limit=round_config(run).evaluate.drift_limit,
        )  # fmt: skip
        evaluate.run(stage)
    return read_json(out / "report.json")


def _link_content(source: str, target: str) -> None:
    """A hard link to a song's file where the file system has them, else a copy; a copy of tables."""
    if Path(source).parent.name in CONTENT_FOLDERS:
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)
