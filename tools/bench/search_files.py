"""Files that entries of the search bench name, made from the songs of a finished run of the demo.

`{adapter}` is the adapter of the aligned model, with its strength. `{probe}` is a probe of `critic.quality`, and
`{direction}` a direction from the worse to the better half of each prompt's songs by the same axis; both are fitted
to the candidates of the mining prompts. Each file is made when an entry first names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
            run = DirectionRun(
                samples=[str(self.candidates)], scores=self._scores, axis=AXIS, out=str(out),
                model=round_config(self.run).model,
            )  # fmt: skip
            fit_direction(run)
        return str(out)

    @property
    def _scores(self) -> str:
        return str(self.run / "scores")


def fill_names(value: Any, files: SearchFiles) -> Any:
    """A value of an entry with the paths of the files that it names."""
    if isinstance(value, str) and value.startswith("{") and value.endswith("}"):
        return files.path(value[1:-1])
    if isinstance(value, Mapping):
        return {key: fill_names(entry, files) for key, entry in value.items()}
    if isinstance(value, list):
        return [fill_names(entry, files) for entry in value]
    return value
