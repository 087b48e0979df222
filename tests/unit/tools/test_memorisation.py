"""Copies that were planted are found, and what is new is not."""

import numpy as np
import pytest

from tools.tiny.memorisation import WhiteningTransform, best_match, nearest, nearness


def song(seed, length=400, components=6):
    """Something with a memory, as latents have one."""
    steps = np.random.default_rng(seed).normal(size=(length, components))
    return 0.3 * steps.cumsum(0) + steps


def test_the_match_is_the_largest_correlation_of_centred_stretches():
    queries = np.stack([song(1)[10:30], song(2)[200:220]])
    library = song(3, length=60)
    expected = []
    for query in queries:
        a = (query - query.mean(0)).ravel()
        rows = [library[i : i + 20] - library[i : i + 20].mean(0) for i in range(41)]
        expected.append(max(a @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b) for b in rows))
    np.testing.assert_allclose(best_match(queries, library), expected)


def test_a_copy_is_found_wherever_it_is_at_any_level_and_colour():
    library = song(0, length=9000)
    cuts = [0, 137, 8191, 8193, 8936]
    queries = np.stack([library[at : at + 64] * 0.3 + 5 for at in cuts])
    np.testing.assert_allclose(best_match(queries, library), 1.0)
    rng = np.random.default_rng(1)
    disturbed = queries + 0.03 * rng.normal(size=queries.shape)
    assert best_match(disturbed, library).min() > 0.98


def test_nothing_matches_a_constant_or_a_song_that_is_too_short():
    flat = np.ones((1, 64, 6))
    assert best_match(flat, song(0))[0] == pytest.approx(0)
    assert best_match(flat, song(0)[:63]).tolist() == [-1]
    assert best_match(song(1)[None, :64], np.ones((100, 6)))[0] == pytest.approx(0)


def test_the_nearest_item_is_the_nearest():
    library = np.random.default_rng(0).normal(size=(20_000, 5))
    chosen = library[[3, 8191, 8192, 19_999]]
    np.testing.assert_allclose(nearest(chosen, library), 0, atol=1e-7)
    queries = np.random.default_rng(1).normal(size=(7, 5))
    expected = np.sqrt(((queries[:, None] - library) ** 2).sum(2)).min(1)
    np.testing.assert_allclose(nearest(queries, library), expected)


def test_whitened_latents_are_uncorrelated_and_the_largest_components_are_kept():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(5000, 4)) * [5, 0.1, 3, 1]
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    white = WhiteningTransform.of(mixed @ rotation + 7, 2)(mixed @ rotation + 7)
    np.testing.assert_allclose(np.cov(white.T), np.eye(2), atol=1e-9)
    assert abs(np.corrcoef(white[:, 0], mixed[:, 0])[0, 1]) > 0.99
    assert abs(np.corrcoef(white[:, 1], mixed[:, 2])[0, 1]) > 0.99


def test_planted_copies_are_flagged_and_independent_songs_are_not():
    """A training set, held-out songs, samples of the same kind; in one set of samples four of ten are copies."""
    library = np.concatenate([song(seed) for seed in range(10)])

    def distances(songs):
        return 1 - best_match(np.stack([s[a : a + 64] for s in songs for a in range(0, 320, 64)]), library)

    def names(prefix, count):
        return [f"{prefix}{i}" for i in range(count) for _ in range(5)]

    held_out = distances([song(100 + i) for i in range(20)])
    fresh = distances([song(200 + i) for i in range(10)])
    rng = np.random.default_rng(0)
    copies = [library[400 * i + 33 : 400 * (i + 1)] for i in range(4)]
    copies = [copy + 0.05 * rng.normal(size=copy.shape) for copy in copies]
    planted = distances([*copies, *(song(300 + i) for i in range(6))])
    honest = nearness(fresh, names("p", 10), held_out, names("h", 20), resamples=500)
    caught = nearness(planted, names("p", 10), held_out, names("h", 20), resamples=500)
    assert honest.nearer.value <= 0.1
    assert honest.median_change.low < 0 < honest.median_change.high
    assert caught.nearer.value == pytest.approx(0.4, abs=0.05)
    assert caught.nearer.low > 0
    assert caught.quantiles["0"] < 0.02 < honest.quantiles["0"]
    all_copied = nearness(planted[:15], names("p", 3), held_out, names("h", 20), resamples=500)
    assert all_copied.nearer.value == 1
    assert all_copied.median_change.high < 0


def test_held_out_segments_against_themselves_are_no_nearer_than_their_quantile():
    values = np.random.default_rng(0).gamma(5, size=1000)
    names = [f"s{i // 20}" for i in range(1000)]
    found = nearness(values, names, values, names, resamples=200)
    assert found.nearer.value == pytest.approx(0.009)  # nine of a thousand lie below the tenth
    assert (found.median_change.value, found.median_change.low, found.median_change.high) == (0, 0, 0)
    assert (found.segments, found.clusters) == (1000, 50)
