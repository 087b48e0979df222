"""The tempo that goes with a style, fitted to songs whose styles say their tempo."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffdpo.data import tables
from diffdpo.data.song_embeddings import write_song_embeddings
from diffdpo.data.songs import SONGS, SongRow
from diffdpo.encoders import beats
from diffdpo.models.diffrhythm.lines import line_tensors

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "tiny"))

import build_tiny

DIM, WINDOWS, WINDOW_S = 8, 6, 10.0


def write_songs(folder: Path, count: int) -> None:
    """Songs at 60 to 240 beats a minute; their first direction is the tempo in octaves, the second the pulse."""
    generator = np.random.default_rng(0)
    for song in range(count):
        octaves, pulse = generator.uniform(np.log2(60), np.log2(240)), song % 3 > 0
        times = np.arange(0, WINDOWS * WINDOW_S, 60 / 2**octaves) if pulse else []
        styles = 0.1 * torch.randn(2, WINDOWS, DIM, generator=torch.Generator().manual_seed(song))
        styles[..., 0] = octaves - 7
        styles[..., 1] = float(pulse)
        tables.append(
            folder,
            SONGS,
            [
                SongRow(
                    id=f"song-{song}",
                    split="valid" if song % 5 == 0 else "train",
                    duration_s=WINDOWS * WINDOW_S,
                )
            ],
        )
        beats_of_song = line_tensors([(float(time), (1,)) for time in times])
        embeddings = [[{"style": style, **beats_of_song} for style in variant] for variant in styles]
        write_song_embeddings(folder / "embeddings" / f"song-{song}.safetensors", embeddings)


def test_fitted_maps_tell_tempo_and_pulse_of_styles_they_have_not_seen(tmp_path, capsys):
    write_songs(tmp_path / "data", 60)
    build_tiny.fit_beats(tmp_path / "data", tmp_path)
    fitted = beats.load_beats(tmp_path)
    for bpm in (80.0, 120.0, 160.0):
        style = torch.zeros(DIM)
        style[:2] = torch.tensor([np.log2(bpm) - 7, 1.0])
        assert fitted.tempo(style) == pytest.approx(bpm, rel=0.03)
        style[1] = 0
        assert fitted.tempo(style) is None
    assert "tempo 1.00, pulse 1.00" in capsys.readouterr().out


def test_ridge_is_least_squares_of_the_examples_and_of_as_many_zeros_as_the_penalty_says():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(40, width, generator=generator, dtype=torch.float64) for width in (3, 1))
    weight, bias = build_tiny.ridge(x.float(), y[:, 0].float())
    centred, level = x - x.mean(0), y - y.mean()
    rows = torch.cat([centred, (40 * build_tiny.RIDGE) ** 0.5 * torch.eye(3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, torch.cat([level, torch.zeros(3, 1)])).solution[:, 0]
    assert torch.allclose(weight.double(), expected, atol=1e-5)
    assert float(bias) == pytest.approx(float(y.mean() - x.mean(0) @ expected), abs=1e-5)
