"""Audit scorers: damage real songs in known ways and print by how much every axis moves.

    python tools/audit_scorers.py corpus/manifest.jsonl > audit.md

Two tables. In the first a cell is the mean change over the songs, in standard deviations between the undamaged:
the axes that claim to hear it are bold. An axis that a loop, noise or gain raises can be gamed. The second
sets songs against what a codec makes of noise, of shuffled and of degraded latents: the share of songs above their
counterpart, and the mean difference with a 95 % interval over songs, each with three excerpts. Judges are
audited too.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.config import OFFLINE
from diffdpo.errors import UserError
from diffdpo.evaluation.perturbations import (
    DAMAGES,
    EVERYTHING,
    WRONG_PROMPT,
    WRONG_PROMPT_FALLS,
    Damage,
    degraded_latents,
    noise_latents,
    shuffled_latents,
)
from diffdpo.models import MODELS
from diffdpo.models.base import SongModel
from diffdpo.progress import bar
from diffdpo.recipes.prepare import read_songs
from diffdpo.registry import pick
from diffdpo.scorers import SCORERS
from diffdpo.scorers.adherence import Adherence
from diffdpo.scorers.base import PromptScorer, Scorer
from diffdpo.scorers.canonical import canonical
from diffdpo.statistics import Effect, paired_effect
from diffdpo.types import Clip, Prompt

Scores = Float[np.ndarray, "song axis"]
FITTING = ("harmony.key", "harmony.consonance", "rhythm", "structure", "adherence")
COUNTERPARTS = {
    "noise in the latent space": (*EVERYTHING, "adherence"),
    "latent frames shuffled": (*FITTING, "musicnn.typicality"),
    "latent seconds shuffled": ("rhythm", "structure"),
    "latents with as much noise as signal": FITTING,
    "the codec's reconstruction": (),
}
"""What real songs are set against, and which axes claim that they are better. The last is what the codec costs."""


PLACES = (0.3, 0.5, 0.7)
"""Where excerpts are taken that are set against the codec's, as shares of the song's length."""


@dataclass(frozen=True)
class Song:
    """An excerpt, and a prompt it answers: the song's text and another excerpt of it."""

    clip: Clip
    prompt: Prompt


def excerpts(path: Path, split: str, count: int, seconds: float, places: Sequence[float]) -> Iterator[Song]:
    """From these places of each song, as shares of its length, and from its first quarter for the prompt."""
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
            yield Song(clip, Prompt(id=song.id, text=song.text or None, style_audio=sound))


def scores(scorers: Mapping[str, Scorer], clips: Sequence[Clip], prompts: Sequence[Prompt]) -> Scores:
    """All axes of all scorers side by side."""
    prepared = [canonical(clip) for clip in clips]
    return np.concatenate(
        [
            scorer(prepared, prompts) if isinstance(scorer, PromptScorer) else scorer(prepared)
            for scorer in scorers.values()
        ],
        axis=1,
    )


def damaged(
    songs: Sequence[Song], heard: Callable[[Sequence[Clip], Sequence[Prompt]], Scores]
) -> dict[str, Scores]:
    """The scores after each damage."""
    clips, prompts = [song.clip for song in songs], [song.prompt for song in songs]
    found = {}
    with bar("damages", len(DAMAGES) + 1, "damage") as progress:
        for name, damage in DAMAGES.items():
            rng = np.random.default_rng(0)
            found[name] = heard([damage(clip, rng) for clip in clips], prompts)
            progress.advance(note=name)
        found[WRONG_PROMPT] = heard(clips, [*prompts[1:], prompts[0]])
    return found


def counterparts(songs: Sequence[Song], model: SongModel) -> dict[str, list[Clip]]:
    """What the codec makes of the songs' latents, and of what is left of them."""
    latents = [model.encode(audio.normalise(song.clip, -16.0)) for song in songs]
    everything, rng = torch.cat(latents), np.random.default_rng(0)
    second = round(model.latents.frames_per_second)
    made = {
        "noise in the latent space": [noise_latents(everything, len(z), rng) for z in latents],
        "latent frames shuffled": [shuffled_latents(z, rng) for z in latents],
        "latent seconds shuffled": [shuffled_latents(z, rng, run=second) for z in latents],
        "latents with as much noise as signal": [degraded_latents(z, rng) for z in latents],
        "the codec's reconstruction": latents,
    }
    found: dict[str, list[Clip]] = {name: [] for name in made}
    with bar("decode", len(made) * len(songs), "song") as progress:
        for name, group in made.items():
            for z in group:
                found[name].append(model.decode(z))
                progress.advance(note=name)
    return found


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    ruled = [rows[0], ["---", *["--:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def damage_table(axes: Sequence[str], original: Scores, found: Mapping[str, Scores]) -> str:
    """One row a damage, one column an axis; then how many claims hold and how many axes stay."""
    spread = np.maximum(original.std(0, ddof=1), 1e-9)
    rows = [["damage", *axes]]
    rows.append(["*undamaged: mean*", *[f"{v:.3f}" for v in original.mean(0)]])
    rows.append(["*undamaged: SD*", *[f"{v:.3f}" for v in original.std(0, ddof=1)]])
    held, quiet, claims, rest = [], 0, 0, 0
    for name, values in found.items():
        change = (values - original).mean(0) / spread
        damage = DAMAGES.get(name) or Damage(lambda x, rate, rng: x, WRONG_PROMPT_FALLS)
        cells = []
        for axis, value in zip(axes, change.tolist(), strict=True):
            claimed = damage.claimed_by(axis)
            claims, rest = claims + claimed, rest + (not claimed)
            held += [f"{axis} under {name}"] * (claimed and value >= 0)
            quiet += not claimed and abs(value) < 0.5
            cells.append(f"**{value:+.2f}**" if claimed else f"{value:+.2f}")
        rows.append([name, *cells])
    failed = f"; not so: {', '.join(held)}" if held else ""
    return (
        f"{markdown(rows)}\n\n{claims - len(held)} of {claims} claimed axes fall{failed}. Of the other {rest} "
        f"cells {quiet} move by less than half a standard deviation."
    )


def counterpart_table(
    axes: Sequence[str], songs: Sequence[str], original: Scores, found: Mapping[str, Scores]
) -> str:
    """One row an axis and counterpart: who wins, and by how much. `songs` says which song an excerpt is of."""
    spread = np.maximum(original.std(0, ddof=1), 1e-9)
    rows = [["axis", *[f"above {name}" for name in found]]]
    claims, certain = 0, 0
    for i, axis in enumerate(axes):
        cells = []
        for name, values in found.items():
            effect = paired_effect(values[:, i] / spread[i], original[:, i] / spread[i], songs)
            claimed = Damage(lambda x, rate, rng: x, COUNTERPARTS[name]).claimed_by(axis)
            claims, certain = claims + claimed, certain + (claimed and effect.direction == "better")
            cells.append(_cell(effect, claimed))
        rows.append([axis, *cells])
    return (
        f"{markdown(rows)}\n\n{certain} of {claims} claimed differences are above zero beyond their interval."
    )


def _cell(effect: Effect, claimed: bool) -> str:
    share = f"{100 * effect.win_rate:.0f} %"
    return (
        f"{f'**{share}**' if claimed else share}, {effect.mean:+.1f} ({effect.low:+.1f} … {effect.high:+.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("songs", type=Path, help="a manifest with splits, or a folder of songs")
    parser.add_argument("--split", default="test")
    parser.add_argument("--damaged", type=int, default=20, help="songs that are damaged; at least two")
    parser.add_argument("--decoded", type=int, default=20, help="songs set against the codec's; 0 for none")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the excerpt of each")
    parser.add_argument("--scorers", default=",".join([*OFFLINE, "adherence"]), help="names, comma-separated")
    parser.add_argument("--model", default="tiny", help="whose codec is used")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error", RuntimeWarning)  # a scorer must not divide by zero
    try:
        scorers = {name: pick("scorer", SCORERS, name)() for name in arguments.scorers.split(",")}
        axes = [axis for scorer in scorers.values() for axis in scorer.axes]

        def heard(clips: Sequence[Clip], prompts: Sequence[Prompt]) -> Scores:
            return scores(scorers, clips, prompts)

        def taken(count: int, places: Sequence[float]) -> list[Song]:
            found = list(excerpts(arguments.songs, arguments.split, count, arguments.seconds, places))
            adherence = scorers.get("adherence")
            if not isinstance(adherence, Adherence):
                return found
            return [replace(s, prompt=replace(s.prompt, style=adherence.wish(s.prompt))) for s in found]

        if arguments.damaged:
            songs = taken(arguments.damaged, [0.5])
            original = heard([s.clip for s in songs], [s.prompt for s in songs])
            print(damage_table(axes, original, damaged(songs, heard)), flush=True)
        if arguments.decoded:
            songs = taken(arguments.decoded, PLACES)
            prompts = [s.prompt for s in songs]
            original = heard([s.clip for s in songs], prompts)
            made = counterparts(songs, pick("model", MODELS, arguments.model)().load())
            found = {name: heard(clips, prompts) for name, clips in made.items()}
            print("\n" + counterpart_table(axes, [p.id for p in prompts], original, found))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
