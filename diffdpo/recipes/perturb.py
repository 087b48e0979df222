"""The command `perturb`: real songs perturbed in known ways, and by how much every axis moves.

Two tables. In the first a cell is the mean change over the songs, in standard deviations between the originals:
the axes that claim to respond are bold. An axis that a loop, noise or gain raises can be gamed. The second
sets songs against what a codec makes of noise, of shuffled and of degraded latents: the share of songs above their
counterpart, and the mean difference with a 95 % interval over songs, each with three excerpts. Judges are
among them. Whether axes are valid on generated songs is what `audit` measures.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from diffdpo import audio
from diffdpo.checks import check_range
from diffdpo.data.song_manifest import read_songs
from diffdpo.evaluation.perturbations import (
    ALL_FAMILIES,
    PERTURBATIONS,
    WRONG_PROMPT,
    WRONG_PROMPT_FALLS,
    Perturbation,
    degraded_latents,
    noise_latents,
    shuffled_latents,
)
from diffdpo.models.base import SongModel
from diffdpo.parts import build_model, build_scorers
from diffdpo.progress import bar
from diffdpo.registry import Choice
from diffdpo.scorers import DEFAULT_SCORERS
from diffdpo.scorers.base import PromptScorer, Scorer
from diffdpo.scorers.canonical import canonical
from diffdpo.statistics import Effect, paired_effect
from diffdpo.types import Clip, Prompt

ScoreMatrix = Float[np.ndarray, "song axis"]
COHERENCE_AXES = ("harmony.key", "harmony.consonance", "rhythm", "structure", "adherence")
COUNTERPARTS = {
    "noise in the latent space": (*ALL_FAMILIES, "adherence"),
    "latent frames shuffled": (*COHERENCE_AXES, "musicnn.typicality"),
    "latent seconds shuffled": ("rhythm", "structure"),
    "latents with as much noise as signal": COHERENCE_AXES,
    "the codec's reconstruction": (),
}
"""The counterparts of real songs, with the axes that claim to be higher for real songs. The last one measures the
loss in the codec."""


PLACES = (0.3, 0.5, 0.7)
"""Centres of the excerpts that are compared with counterparts, as shares of the song's length."""


@dataclass(frozen=True)
class SongExcerpt:
    """An excerpt, and a prompt for it: the song's text and another excerpt of the song."""

    clip: Clip
    prompt: Prompt


def excerpts(
    path: Path, split: str, count: int, seconds: float, places: Sequence[float]
) -> Iterator[SongExcerpt]:
    """Excerpts around `places` of each song, as shares of its length; the prompt's is from the first quarter."""
    songs = [song for song in read_songs(path, 0.0) if path.is_dir() or song.split == split]
    for song in songs[:: max(1, len(songs) // count)][:count]:
        length = audio.seconds_of(song.audio)
        sound, *clips = (
            audio.stereo(
                audio.read(song.audio, start_s=max(0.0, share * length - seconds / 2), seconds=seconds)
            )
            for share in (0.25, *places)
        )
        for clip in clips:
            yield SongExcerpt(clip, Prompt(id=song.id, text=song.text or None, style_audio=sound))


def scores(scorers: Mapping[str, Scorer], clips: Sequence[Clip], prompts: Sequence[Prompt]) -> ScoreMatrix:
    """The values of all axes of all scorers, [song, axis]."""
    inputs = [canonical(clip) for clip in clips]
    return np.concatenate(
        [
            scorer(inputs, prompts) if isinstance(scorer, PromptScorer) else scorer(inputs)
            for scorer in scorers.values()
        ],
        axis=1,
    )


def perturbed_scores(
    songs: Sequence[SongExcerpt], score: Callable[[Sequence[Clip], Sequence[Prompt]], ScoreMatrix]
) -> dict[str, ScoreMatrix]:
    """The scores after each perturbation."""
    clips, prompts = [song.clip for song in songs], [song.prompt for song in songs]
    values: dict[str, ScoreMatrix] = {}
    with bar("perturb", len(PERTURBATIONS) + 1, "perturbation") as progress:
        for name, perturbation in PERTURBATIONS.items():
            rng = np.random.default_rng(0)
            values[name] = score([perturbation(clip, rng) for clip in clips], prompts)
            progress.advance(note=name)
        values[WRONG_PROMPT] = score(clips, [*prompts[1:], prompts[0]])
    return values


def counterparts(songs: Sequence[SongExcerpt], model: SongModel) -> dict[str, list[Clip]]:
    """The codec's sound of the songs' latents, of the same latents degraded, and of noise; clips by counterpart."""
    latents = [model.encode(audio.normalise(song.clip, -16.0)) for song in songs]
    all_latents, rng = torch.cat(latents), np.random.default_rng(0)
    second = round(model.spec.frames_per_second)
    latent_groups = {
        "noise in the latent space": [noise_latents(all_latents, len(z), rng) for z in latents],
        "latent frames shuffled": [shuffled_latents(z, rng) for z in latents],
        "latent seconds shuffled": [shuffled_latents(z, rng, run=second) for z in latents],
        "latents with as much noise as signal": [degraded_latents(z, rng) for z in latents],
        "the codec's reconstruction": latents,
    }
    clips: dict[str, list[Clip]] = {name: [] for name in latent_groups}
    with bar("decode", len(latent_groups) * len(songs), "song") as progress:
        for name, group in latent_groups.items():
            for z in group:
                clips[name].append(model.decode(z))
                progress.advance(note=name)
    return clips


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first row is the head."""
    lines = [rows[0], ["---", *["--:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def perturbation_table(
    axes: Sequence[str], original: ScoreMatrix, matrices: Mapping[str, ScoreMatrix]
) -> str:
    """A table of perturbations by axes; then how many claims hold and how many axes do not move."""
    spread = np.maximum(original.std(0, ddof=1), 1e-9)
    rows = [["perturbation", *axes]]
    rows.append(["*unperturbed: mean*", *[f"{v:.3f}" for v in original.mean(0)]])
    rows.append(["*unperturbed: SD*", *[f"{v:.3f}" for v in original.std(0, ddof=1)]])
    exceptions, quiet, claims, other_changes = [], 0, 0, 0
    for name, values in matrices.items():
        change = (values - original).mean(0) / spread
        perturbation = PERTURBATIONS.get(name) or Perturbation(lambda x, rate, rng: x, WRONG_PROMPT_FALLS)
        cells = []
        for axis, value in zip(axes, change.tolist(), strict=True):
            is_claim = perturbation.lowers(axis)
            claims, other_changes = claims + is_claim, other_changes + (not is_claim)
            exceptions += [f"{axis} under {name}"] * (is_claim and value >= 0)
            quiet += not is_claim and abs(value) < 0.5
            cells.append(f"**{value:+.2f}**" if is_claim else f"{value:+.2f}")
        rows.append([name, *cells])
    note = f"; not so: {', '.join(exceptions)}" if exceptions else ""
    return (
        f"{markdown(rows)}\n\n{claims - len(exceptions)} of {claims} claimed axes fall{note}. "
        f"Of the other {other_changes} cells {quiet} move by less than half a standard deviation."
    )


def counterpart_table(
    axes: Sequence[str], songs: Sequence[str], original: ScoreMatrix, matrices: Mapping[str, ScoreMatrix]
) -> str:
    """A table of axes by counterparts: share of wins, mean difference. `songs` names the song of each excerpt."""
    spread = np.maximum(original.std(0, ddof=1), 1e-9)
    rows = [["axis", *[f"above {name}" for name in matrices]]]
    claims, certain = 0, 0
    for i, axis in enumerate(axes):
        cells = []
        for name, values in matrices.items():
            effect = paired_effect(values[:, i] / spread[i], original[:, i] / spread[i], songs)
            is_claim = Perturbation(lambda x, rate, rng: x, COUNTERPARTS[name]).lowers(axis)
            claims, certain = claims + is_claim, certain + (is_claim and effect.direction == "better")
            cells.append(_cell(effect, is_claim))
        rows.append([axis, *cells])
    return (
        f"{markdown(rows)}\n\n{certain} of {claims} claimed differences are above zero beyond their interval."
    )


def _cell(effect: Effect, is_claim: bool) -> str:
    share = f"{100 * effect.win_rate:.0f} %"
    return f"{f'**{share}**' if is_claim else share}, {effect.mean:+.1f} ({effect.low:+.1f} … {effect.high:+.1f})"


@dataclass(frozen=True, kw_only=True)
class PerturbationSettings:
    """Which songs are perturbed, and which axes are watched."""

    split: str = "test"
    n_perturbed: int = 20
    """Songs that are perturbed; 0 for none."""
    n_decoded: int = 20
    """Songs that are compared with their counterparts from the codec; 0 for none."""
    seconds: float = 10.0
    """Length of the excerpt of each."""
    scorers: tuple[str, ...] = ()
    """Names; empty: those that need no download."""
    model: str = "tiny"

    def __post_init__(self) -> None:
        check_range(self, "n_perturbed", "n_decoded", low=0)
        check_range(self, "seconds", above=0)


def perturb_songs(path: Path, settings: PerturbationSettings) -> Iterator[str]:
    """The tables, one after another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scorers = build_scorers(settings.scorers or (*DEFAULT_SCORERS, "adherence"))
    axes = [axis for scorer in scorers.values() for axis in scorer.axes]

    def score(clips: Sequence[Clip], prompts: Sequence[Prompt]) -> ScoreMatrix:
        return scores(scorers, clips, prompts)

    def read(count: int, places: Sequence[float]) -> list[SongExcerpt]:
        return list(excerpts(path, settings.split, count, settings.seconds, places))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # a scorer must not divide by zero
            if settings.n_perturbed:
                songs = read(settings.n_perturbed, [0.5])
                original = score([s.clip for s in songs], [s.prompt for s in songs])
                yield perturbation_table(axes, original, perturbed_scores(songs, score))
            if settings.n_decoded:
                songs = read(settings.n_decoded, PLACES)
                prompts = [s.prompt for s in songs]
                original = score([s.clip for s in songs], prompts)
                groups = counterparts(songs, build_model(Choice(settings.model)))
                values = {name: score(clips, prompts) for name, clips in groups.items()}
                yield counterpart_table(axes, [p.id for p in prompts], original, values)
    finally:
        torch.set_num_threads(threads)
