"""Composites of witnesses against their definition."""

import numpy as np
import pytest

from diffdpo.errors import DataError
from diffdpo.evaluation.composites import composite_effects, fit_composites

AXES = ("note.triad", "note.key", "note.scale", "beat.coherence", "note.recur", "note.variety")
PROMPTS = [f"p{k // 2}" for k in range(48)]


def witnesses(shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=48)
    return {
        axis: 3 + k + (0.5 * common + rng.normal(size=48) + shift) * (k + 1) for k, axis in enumerate(AXES)
    }


def test_every_composite_of_the_base_has_mean_0_and_deviation_1():
    base = witnesses()
    values = fit_composites(base, ("note.recur", "note.variety")).values(base)
    assert list(values) == ["W.harmony", "W.rhythm", "W.form", "W.all"]
    for composite in values.values():
        assert composite.mean() == pytest.approx(0, abs=1e-12)
        assert composite.std(ddof=1) == pytest.approx(1)


def test_w_all_by_hand():
    base, other = witnesses(), witnesses(shift=0.7, seed=1)
    scale = fit_composites(base)
    z = {axis: lambda x, axis=axis: (x - base[axis].mean()) / base[axis].std(ddof=1) for axis in AXES}
    harmony = [
        sum(z[a](songs[a]) for a in ("note.triad", "note.key", "note.scale")) / 3 for songs in (base, other)
    ]
    rhythm = [z["beat.coherence"](songs["beat.coherence"]) for songs in (base, other)]
    both = [(h / harmony[0].std(ddof=1) + r) / 2 for h, r in zip(harmony, rhythm, strict=True)]
    values = scale.values(other)
    np.testing.assert_allclose(values["W.harmony"], harmony[1] / harmony[0].std(ddof=1))
    np.testing.assert_allclose(values["W.all"], both[1] / both[0].std(ddof=1))
    assert "no witness of form has scores of all songs" in scale.definition
    assert "form" in fit_composites(base, ("note.recur",)).definition.split("of ")[1]


def test_a_shift_of_one_deviation_in_rhythm_is_an_effect_of_one_on_it_and_none_on_harmony():
    base = witnesses()
    aligned = base | {"beat.coherence": base["beat.coherence"] + base["beat.coherence"].std(ddof=1)}
    effects = composite_effects(fit_composites(base), base, aligned, PROMPTS)
    assert effects["W.rhythm"].mean == pytest.approx(1)
    assert effects["W.rhythm"].effect_size == pytest.approx(1)
    assert effects["W.harmony"].mean == pytest.approx(0)
    assert effects["W.all"].mean > 0.5
    assert effects["W.all"].clusters == 24


def test_a_pair_without_a_score_is_left_out_of_the_composites_that_need_it():
    base, aligned = witnesses(), witnesses(shift=1)
    aligned["note.key"][[3, 4]] = np.nan
    effects = composite_effects(fit_composites(base), base, aligned, PROMPTS)
    assert [effects[name].count for name in ("W.harmony", "W.rhythm", "W.all")] == [46, 48, 46]


def test_a_witness_without_scores_or_without_spread_is_named():
    base = witnesses()
    with pytest.raises(DataError, match=r"note\.key"):
        fit_composites({axis: base[axis] for axis in AXES if axis != "note.key"})
    with pytest.raises(DataError, match=r"beat\.coherence: the same for all 48"):
        fit_composites(base | {"beat.coherence": np.full(48, 0.5)})
    with pytest.raises(DataError, match=r"note\.triad.*finite"):
        fit_composites(base | {"note.triad": np.full(48, np.nan)})
