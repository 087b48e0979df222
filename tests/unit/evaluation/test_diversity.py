"""Measures of diversity against closed forms."""

import math

import numpy as np
import pytest

from diffdpo.errors import DataError
from diffdpo.evaluation.diversity import (
    distance_change,
    diversity_changes,
    prompt_distances,
    spread_changes,
    vendi_change,
    vendi_score,
)

PROMPTS = [f"p{k // 2:02d}" for k in range(48)]


def test_copies_are_one_song_and_orthogonal_songs_are_as_many_as_they_are():
    assert vendi_score(np.tile([1.0, 2.0, 3.0], (7, 1))) == pytest.approx(1)
    assert vendi_score(np.eye(9)) == pytest.approx(9)
    assert vendi_score(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3)
    assert vendi_score(np.eye(9, dtype=np.float32) * 5) == pytest.approx(9)


def test_two_songs_at_an_angle():
    """Eigenvalues (1 ± cos) / 2."""
    cosine = 0.6
    shares = np.array([(1 + cosine) / 2, (1 - cosine) / 2])
    score = vendi_score(np.array([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]]))
    assert score == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))


def test_embeddings_without_direction_are_refused():
    with pytest.raises(DataError, match="finite"):
        vendi_score(np.zeros((2, 3)))
    with pytest.raises(DataError, match="48 and 2"):
        vendi_change(np.ones((48, 2)), np.ones((2, 2)))


def test_the_distance_of_two_songs_of_a_prompt_is_one_minus_their_cosine():
    embeddings = np.array([[1.0, 0], [0, 2], [3, 0], [3, 0], [1, 1]])
    distances, names = prompt_distances(embeddings, ["a", "a", "b", "b", "alone"])
    np.testing.assert_allclose(distances, [1, 0], atol=1e-12)
    assert names == ["a", "b"]
    with pytest.raises(DataError, match="two songs of a prompt"):
        prompt_distances(embeddings, list("abcde"))


def test_songs_pulled_together_within_prompts_are_nearer_by_their_share():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(48, 16)) + 4
    means = base.reshape(24, 2, 16).mean(1).repeat(2, axis=0)
    change = distance_change(base, means + 0.5 * (base - means), PROMPTS)
    assert change.ratio.value == pytest.approx(
        0.25, abs=0.05
    )  # the distance goes with the square of the angle
    assert change.ratio.low < change.ratio.value < change.ratio.high < 0.4
    same = diversity_changes({"style": (base, base)}, PROMPTS)
    assert list(same) == ["vendi.style", "distance.style"]
    assert [value.change for value in same.values()] == [0, 0]


def world(scale, seed=0, songs=4):
    rng = np.random.default_rng(seed)
    prompts = [f"p{k // songs:02d}" for k in range(24 * songs)]
    place = rng.normal(0, 3, 24).repeat(songs)
    base, aligned = rng.normal(size=(2, 24 * songs))
    return {"x": place + base}, {"x": place + scale * (0.7 * base + 0.7 * aligned)}, prompts


def test_the_spread_is_that_within_prompts():
    base, aligned, prompts = world(0.5)
    change = spread_changes(base, aligned, prompts)["x"]
    assert change.base == pytest.approx(
        np.sqrt(np.mean([base["x"][k : k + 4].var(ddof=1) for k in range(0, 96, 4)]))
    )
    assert change.ratio.value == pytest.approx(0.5, abs=0.1)
    assert change.ratio.low < 0.5 < change.ratio.high < 0.9
    assert change.collapsed


def test_a_spread_a_little_smaller_or_known_from_few_prompts_is_no_collapse():
    base, aligned, prompts = world(0.87)
    assert not spread_changes(base, aligned, prompts)["x"].collapsed
    base, aligned, prompts = world(0.1)
    few = spread_changes({"x": base["x"][:28]}, {"x": aligned["x"][:28]}, prompts[:28])["x"]
    assert few.prompts == 7
    assert not few.collapsed


def test_holm_over_witnesses_makes_each_claim_harder():
    base, aligned, prompts = world(0.6, seed=5)
    alone = spread_changes(base, aligned, prompts)["x"]
    others = {str(k): world(1.0, seed=10 + k)[:2] for k in range(8)}
    many = spread_changes(
        base | {name: sides[0]["x"] for name, sides in others.items()},
        aligned | {name: sides[1]["x"] for name, sides in others.items()},
        prompts,
    )
    assert many["x"].p_value == pytest.approx(min(1, 9 * alone.p_value))
    assert not any(many[name].collapsed for name in others)


def test_songs_without_a_score_are_left_out_on_both_sides():
    base, aligned, prompts = world(0.5)
    aligned["x"][[0, 1, 2, 50]] = np.nan  # one song of the first prompt is left, three of another
    change = spread_changes(base, aligned, prompts)["x"]
    assert change.prompts == 23
    assert spread_changes({"flat": np.ones(96)}, {"flat": np.ones(96)}, prompts) == {}
