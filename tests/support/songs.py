"""Generated songs in the layout that `sample` writes, without a model."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from diffdpo.data import tables
from diffdpo.data.latents import write_latents
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.ratings import RATINGS, RatingRow
from diffdpo.data.samples import SAMPLES, SampleRow, relative_folder, sample_id
from diffdpo.data.songs import SONGS, SongRow, song_latents


def write_samples(folder: Path, *, prompts: int, per_prompt: int, seed: int = 0) -> Path:
    """Songs p00.000 … of random latents, 14 to 18 frames of 8 channels; no audio."""
    generator = torch.Generator().manual_seed(seed)
    lines, rows = [], []
    for i in range(prompts):
        prompt = f"p{i:02d}"
        text = "slow rock" if i % 2 else "fast metal"
        lines.append(json.dumps({"id": prompt, "text": text, "duration_s": 1.0, "group": prompt}))
        for k in range(per_prompt):
            name = sample_id(prompt, k)
            latents = torch.randn(14 + (i + k) % 5, 8, generator=generator)
            write_latents(folder / "latents" / f"{name}.safetensors", latents)
            sha256 = f"{folder.name}-{name}"
            rows.append(
                SampleRow(
                    sample_id=name,
                    prompt_id=prompt,
                    group=prompt,
                    frames=len(latents),
                    duration_s=1.0,
                    sha256=sha256,
                )
            )
    tables.append(folder, SAMPLES, rows)
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


def write_prepared(folder: Path, songs: Sequence[SongRow], channels: int = 8) -> Path:
    """Prepared songs whose latents count the frames, in the layout that `prepare` writes; no embeddings."""
    for row in songs:
        ramp = torch.arange(row.frames, dtype=torch.float32)[:, None].repeat(1, channels) / 10
        write_latents(song_latents(folder, row.id), ramp)
    tables.append(folder, SONGS, songs)
    return folder


def write_ratings(folder: Path, samples: Path, values: dict[str, float], source: str = "mined") -> Path:
    """Ratings of songs by id, in the layout that `mine` writes."""
    rows = []
    for name, value in values.items():
        prompt = name.rsplit(".", 1)[0]
        rows.append(
            RatingRow(
                prompt_id=prompt,
                group=prompt,
                samples=relative_folder(samples, folder),
                sample_id=name,
                rating=value,
                source=source,
            )
        )
    tables.append(folder, RATINGS, rows)
    return folder


def write_pairs(folder: Path) -> Path:
    """Twelve pairs of random latents in the layout that `sample` and `mine` write; the folder of the pairs.

    Songs have 14 to 18 frames, a winner other than its loser.
    """
    samples, mined = folder / "samples", folder / "pairs"
    generator = torch.Generator().manual_seed(0)
    prompts, songs, rows = [], [], []
    for i in range(12):
        prompt = f"p{i:02d}"
        prompts.append(
            {"id": prompt, "text": "slow rock" if i % 2 else "fast metal", "duration_s": 1.0, "group": prompt}
        )
        for k in range(2):
            name = f"{prompt}.{k:03d}"
            latents = torch.randn(14 + (i + 2 * k) % 5, 8, generator=generator)
            write_latents(samples / "latents" / f"{name}.safetensors", latents)
            songs.append(
                SampleRow(sample_id=name, prompt_id=prompt, group=prompt, frames=len(latents), duration_s=1.0)
            )
        rows.append(
            PairRow(
                prompt_id=prompt,
                group=prompt,
                samples="../samples",
                winner=f"{prompt}.000",
                loser=f"{prompt}.001",
                rule="test",
            )
        )
    tables.append(samples, SAMPLES, songs)
    (samples / "prompts.jsonl").write_text("\n".join(json.dumps(prompt) for prompt in prompts))
    tables.append(mined, PAIRS, rows)
    return mined
