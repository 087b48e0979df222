"""Mining on values in memory: candidates in, pairs, ratings and reasons out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.candidates import AXES, candidate, prompt

from diffdpo.errors import ConfigError
from diffdpo.mining import (
    BestVersusWorst,
    Candidates,
    Pair,
    SpanConfig,
    finish_pairs,
    mine_candidates,
    to_candidates,
    with_spans,
)
from diffdpo.mining.base import weighted_mean

SONGS = [*prompt(a=(2.0, 2.0), b=(1.0, 1.0), c=(0.0, 0.0)), candidate("q", "lone", 1.0, 1.0)]


def test_candidates_become_pairs_ratings_and_reasons():
    result = mine_candidates(to_candidates(SONGS, AXES), BestVersusWorst())
    (pair,) = result.pairs
    assert (pair.prompt_id, pair.winner, pair.loser) == ("p", "a", "c")
    assert result.ratings == {"a": pytest.approx(1.5**0.5), "b": 0.0, "c": pytest.approx(-(1.5**0.5))}
    assert set(result.reasons) == {"q"}


def test_without_a_rule_there_are_ratings_only():
    result = mine_candidates(to_candidates(SONGS, AXES), None, {"sound": 0.0})
    assert (result.pairs, result.reasons) == ((), {})
    assert set(result.ratings) == {"a", "b", "c"}
    with pytest.raises(ConfigError, match="'melodie' is not among the mined axes"):
        mine_candidates(to_candidates(SONGS, AXES), None, {"melodie": 1.0})


def test_columns_are_mined_as_songs_are():
    columns = Candidates(
        prompt_ids=["p", "q", "p", "p"],
        groups=["p", "q", "p", "p"],
        sample_ids=["b", "lone", "a", "c"],
        axes=AXES,
        scores=np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]),
    )
    assert mine_candidates(columns, BestVersusWorst()) == mine_candidates(
        to_candidates(SONGS, AXES), BestVersusWorst()
    )


def test_two_songs_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two candidates have the same sample id"):
        to_candidates([*SONGS, candidate("r", "lone", 2.0, 2.0)], AXES)


@pytest.mark.parametrize("axes", [1, 2, 7, 8, 9, 17])
@pytest.mark.parametrize("songs", [2, 3, 8, 9])
def test_a_weighted_mean_adds_the_axes_one_by_one(axes, songs):
    """To the last bit, whatever numpy makes of an array of this shape."""
    values = np.random.default_rng(axes).normal(size=(axes, songs, songs))
    names = [f"axis {place}" for place in range(axes)]
    weights = {name: 0.1 * place for place, name in enumerate(names) if place % 2}
    means = weighted_mean(values, names, weights)
    for winner, loser in np.ndindex(songs, songs):
        total = size = 0.0
        for name, value in zip(names, values[:, winner, loser].tolist(), strict=True):
            total += weights.get(name, 1.0) * value
            size += weights.get(name, 1.0)
        assert means[winner, loser] == total / size


def pair(name, margin):
    return Pair(
        prompt_id=name, group=name, winner=f"{name}1", loser=f"{name}0", rule="r", margins={"melody": margin}
    )


def test_the_strongest_pairs_are_finished_and_know_where_they_stood():
    pairs = [pair("p", 1.0), pair("q", 3.0), pair("r", 2.0)]
    assert finish_pairs(pairs, {}) == list(enumerate(pairs))
    chosen = finish_pairs(pairs, {}, limit=2, temperature=1.0)
    assert [place for place, _ in chosen] == [1, 2]
    assert [finished.soft_label for _, finished in chosen] == pytest.approx(
        [1 / (1 + np.exp(-3.0)), 1 / (1 + np.exp(-2.0))]
    )


def test_spans_are_found_between_the_songs_of_a_pair():
    windows = {
        "p1": {(0.0, 1.0): {"melody": 1.0}, (1.0, 2.0): {"melody": 1.0}},
        "p0": {(0.0, 1.0): {"melody": 1.0}, (1.0, 2.0): {"melody": -1.0}},
    }
    config = SpanConfig(min_margin=1.0, max_gap_s=0.0, min_s=0.0)
    assert with_spans(pair("p", 1.0), windows, {}, config).spans == ((1.0, 2.0),)
    assert with_spans(pair("q", 1.0), windows, {}, config).spans == ()


def test_importing_the_rules_loads_numpy_and_nothing_of_weight():
    code = (
        "import sys; from diffdpo.mining import RULES, mine_candidates; "
        "heavy = {'torch', 'pyarrow', 'scipy', 'omegaconf'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)
