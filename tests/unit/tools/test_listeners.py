"""Simulated listeners: shares of errors and ties as said, by a hidden utility that is not linear."""

from pathlib import Path

import numpy as np
import pytest

from diffdpo.data.samples import SampleRow
from diffdpo.data.votes import read_votes
from tools.bench.listeners import (
    WITNESS_AXES,
    HiddenTaste,
    Listeners,
    WitnessedSong,
    simulate_votes,
    write_votes,
)

RNG = np.random.default_rng(0)
SONGS = [
    WitnessedSong(
        SampleRow(
            sample_id=f"p{k // 10}.{k % 10:03d}",
            prompt_id=f"p{k // 10}",
            group=f"g{k // 10}",
            sha256=f"{k:064x}",
        ),
        Path("samples"),
        RNG.standard_normal(len(WITNESS_AXES)),
    )
    for k in range(100)
]
TASTE = HiddenTaste.of(SONGS)
UTILITY = dict(
    zip(
        [song.row.sample_id for song in SONGS],
        TASTE.utility(np.stack([s.values for s in SONGS])),
        strict=True,
    )
)


def test_the_hidden_utility_wants_both_and_saturates():
    steps = np.zeros((4, len(WITNESS_AXES)))
    unit = HiddenTaste(np.zeros(len(WITNESS_AXES)), np.ones(len(WITNESS_AXES)))
    steps[1, :3] = 1.0  # harmony alone
    steps[2, 3:] = 1.0  # rhythm alone
    steps[3] = 1.0
    none, harmony, rhythm, both = unit.utility(steps)
    assert none == 0
    assert harmony == pytest.approx(np.tanh(1))
    assert both > harmony + rhythm + 0.5  # the weaker of the two counts by itself
    assert unit.utility(3 * steps)[1] < 2 * harmony


def test_flips_and_ties_have_their_shares(tmp_path):
    listeners = Listeners(votes=4000, seed=3)
    rows = simulate_votes(SONGS, listeners, TASTE, tmp_path)
    answers = [row.answer for row in rows]
    assert answers.count("tie") == 400
    assert len({row.rater for row in rows}) == 30
    margins = np.array([UTILITY[row.song_a] - UTILITY[row.song_b] for row in rows])
    decided = np.array([answer != "tie" for answer in answers])
    wrong = np.array([(row.answer == "a") != (m > 0) for row, m in zip(rows, margins, strict=True)])[decided]
    assert wrong.mean() == pytest.approx(0.1, abs=0.02)
    assert np.abs(margins[~decided]).max() <= np.abs(margins[decided]).min()
    assert all(row.prompt_id == row.song_a[:2] == row.song_b[:2] and row.song_a != row.song_b for row in rows)


def test_the_same_seed_gives_the_same_table_and_another_does_not(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        write_votes(SONGS, Listeners(votes=50, seed=seed), TASTE, folder)
    first, copy, other = ([row.answer + row.song_a for row in read_votes(folder)] for folder in folders)
    assert first == copy != other


def test_tastes_of_their_own_make_listeners_disagree(tmp_path):
    alike, unlike = (
        simulate_votes(
            SONGS, Listeners(votes=3000, flips=0, ties=0, individuality=spread, raters=5), TASTE, tmp_path
        )
        for spread in (0.0, 2.0)
    )
    for rows, low, high in ((alike, 1.0, 1.0), (unlike, 0.5, 0.95)):
        agreement = np.mean(
            [(row.answer == "a") == (UTILITY[row.song_a] > UTILITY[row.song_b]) for row in rows]
        )
        assert low <= agreement <= high
