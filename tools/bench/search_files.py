"""Files that entries of the search bench name, made from the songs of a finished run of the demo.

`{adapter}` is the adapter of the aligned model, with its strength. `{probe}` is a probe of `critic.quality`, and
`{direction}` a direction from the worse to the better half of each prompt's songs by the same axis; both are fitted
to the candidates of the mining prompts. Each file is made when an entry first names it.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, Samples, open_samples, write_prompts
from diffdpo.data.song_scores import join_scores, read_scores
from diffdpo.evaluation.best_of_n import prompt_places
from diffdpo.recipes.direction import DirectionRun, fit_direction
from diffdpo.recipes.probe import ProbeRun, fit_latent_probe
from tools.bench.aligned_models import aligned_choice, round_config

AXIS = "critic.quality"


@dataclass(frozen=True)
class SearchFiles:
    """The files of one bench."""

    run: Path
    folder: Path

    def path(self, name: str) -> str:
        """The file of a name."""
        makers: dict[str, Callable[[], str]] = {
            "adapter": self.adapter,
            "probe": self.probe,
            "direction": self.direction,
        }
        return makers[name]()

    @property
    def candidates(self) -> Path:
        return self.run / "round-1" / "candidates"

    def adapter(self) -> str:
        """The adapter of the aligned model, as `path@strength`."""
        return str(aligned_choice(self.run).args["adapter"])

    def probe(self) -> str:
        """A probe of the axis."""
        out = self.folder / "probe.safetensors"
        if not out.is_file():
            run = ProbeRun(out=str(out), samples=[str(self.candidates)], scores=self._scores, axis=AXIS)
            fit_latent_probe(run)
        return str(out)

    def direction(self) -> str:
        """A direction from the worse to the better songs of each prompt."""
        out = self.folder / "direction.safetensors"
        if not out.is_file():
            worse, better = self._halves()
            run = DirectionRun(
                positive=str(better), negative=str(worse), out=str(out), model=round_config(self.run).model
            )
            fit_direction(run)
        return str(out)

    @property
    def _scores(self) -> str:
        return str(self.run / "scores")

    def _halves(self) -> tuple[Path, Path]:
        """Two samples folders: the worse and the better half of each prompt's candidates."""
        samples = open_samples(self.candidates)
        songs = join_scores(read_scores(Path(self._scores)), samples, samples.prompts())
        values = songs.values[:, songs.axes.index(AXIS)]
        halves: tuple[list[str], list[str]] = ([], [])
        for rows in prompt_places(songs.prompt_ids).values():
            order = np.asarray(rows)[np.argsort(values[rows], kind="stable")]
            for place, row in enumerate(order):
                halves[place >= len(order) // 2].append(songs.sample_ids[row])
        folders = self.folder / "worse", self.folder / "better"
        for folder, names in zip(folders, halves, strict=True):
            _copy_songs(samples, Samples(folder), set(names))
        return folders


def _copy_songs(source: Samples, target: Samples, names: set[str]) -> None:
    """Some songs of a folder as a folder of their own."""
    write_prompts(target.folder / "prompts.jsonl", source.prompts(), {})
    rows = [row for row in source.rows() if row.sample_id in names]
    for row in rows:
        origin, copy = source.latents(row.sample_id), target.latents(row.sample_id)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, copy)
    tables.replace(target.folder, SAMPLES, rows)


def fill_names(value: Any, files: SearchFiles) -> Any:
    """A value of an entry with the paths of the files that it names."""
    if isinstance(value, str) and value.startswith("{") and value.endswith("}"):
        return files.path(value[1:-1])
    if isinstance(value, Mapping):
        return {key: fill_names(entry, files) for key, entry in value.items()}
    if isinstance(value, list):
        return [fill_names(entry, files) for entry in value]
    return value
