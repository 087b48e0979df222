"""`diffdpo probe fit`: a latent probe of an axis from samples folders and their scores, for reward guidance."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import MISSING

from diffdpo import __version__
from diffdpo.checks import check_seed
from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.data.latents import read_latents
from diffdpo.data.samples import open_samples
from diffdpo.data.scores import newest_versions
from diffdpo.data.song_scores import axis_songs, read_scores
from diffdpo.errors import ConfigError, DataError
from diffdpo.models.latent_probe import ProbeCard, save_probe
from diffdpo.progress import bar
from diffdpo.scorers import SCORERS
from diffdpo.scorers.axes import check_goal
from diffdpo.training.probe_fit import FittedProbe, ProbeData, ProbeFit, fit_probe


@dataclass
class ProbeRun:
    """A latent probe of an axis."""

    out: str = field(default=MISSING, metadata=PATH)
    """File to write, .safetensors."""
    samples: list[str] = field(default_factory=list, metadata=PATH_LIST)
    """Folders of `diffdpo sample` or `search`, all of one model."""
    scores: str = field(default=MISSING, metadata=PATH)
    """Folder of `diffdpo score` with the axis of these songs."""
    axis: str = "critic.quality"
    """What the probe predicts, in standard deviations of these songs."""
    fit: ProbeFit = field(default_factory=ProbeFit)
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self, "seed")

    def check_parts(self) -> None:
        """ConfigError for an axis that does not exist or judges, or for no samples."""
        check_goal(self.axis, "axis")
        if not self.samples:
            raise ConfigError("samples: name at least one folder of `diffdpo sample`")
        if not self.out.endswith(".safetensors"):
            raise ConfigError(f"out: a probe is a .safetensors file, got {self.out}")


def fit_latent_probe(cfg: ProbeRun) -> str:
    """Fit and write the probe; what it does on held-out prompts, in lines."""
    scores = read_scores(Path(cfg.scores))
    songs = [
        song for folder in cfg.samples for song in axis_songs(open_samples(Path(folder)), scores, cfg.axis)
    ]
    if not songs:
        raise DataError(f"{cfg.scores}: no score of {cfg.axis} for these songs; `diffdpo score` makes them")
    if len({song.row.model for song in songs}) > 1:
        raise DataError(
            "samples: the folders hold songs of several models; a probe is of one model's latents"
        )
    values = torch.tensor([song.value for song in songs], dtype=torch.float64)
    center, scale = float(values.mean()), float(values.std())
    if not scale > 0:
        raise DataError(f"{cfg.axis} is the same for all {len(songs)} songs; there is nothing to fit")
    data = ProbeData(
        ids=[song.row.sample_id for song in songs],
        latents=[read_latents(song.latents) for song in songs],
        values=((values - center) / scale).float(),
        groups=[song.row.group or song.row.prompt_id for song in songs],
    )
    if len({latents.shape[1] for latents in data.latents}) > 1:
        raise DataError(
            "samples: the folders hold latents of several widths; a probe is of one model's latents"
        )
    with bar("probe", cfg.fit.steps, "step") as progress:
        result = fit_probe(data, cfg.fit, seed=cfg.seed, on_step=progress.advance)
    identity = json.dumps([[song.row.sample_id, song.row.sha256, song.value] for song in songs])
    scorer = next(name for name, scorer in SCORERS.items() if cfg.axis in scorer.axes)
    card = ProbeCard(
        axis=cfg.axis,
        center=center,
        scale=scale,
        correlation=mean_correlation(result),
        correlations=result.correlations,
        group_correlations=result.group_correlations,
        songs=len(songs),
        held_out_songs=result.held_out_songs,
        scorer=newest_versions(Path(cfg.scores)).get(scorer, ""),
        model=songs[0].row.model,
        data=hashlib.sha256(identity.encode()).hexdigest()[:16],
        seed=cfg.seed,
        version=__version__,
    )
    save_probe(Path(cfg.out), result.probe, card)
    return "\n".join(_lines(cfg, card, sum(p.numel() for p in result.probe.parameters())))


def mean_correlation(result: FittedProbe) -> float:
    """The mean over times of the correlation on held-out songs."""
    return sum(result.correlations.values()) / len(result.correlations)


def _lines(cfg: ProbeRun, card: ProbeCard, parameters: int) -> Iterator[str]:
    yield (
        f"{cfg.axis}: {card.songs} songs, {card.held_out_songs} of them of held-out prompts; "
        f"{parameters} parameters"
    )
    for time, correlation in card.correlations.items():
        group_correlation = card.group_correlations[time]
        yield (
            f"t = {time}: correlation {correlation:+.2f} on held-out prompts, {group_correlation:+.2f} among songs "
            "of one prompt"
        )
    if card.correlation < 0.2:
        yield "a correlation this low guides by chance: score more songs, or choose another axis"
    yield cfg.out
