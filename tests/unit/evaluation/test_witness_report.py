"""What witnesses say of paired songs: numbers that can be worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from diffdpo.evaluation.band import BAND_WITNESSES, Band
from diffdpo.evaluation.best_of_n import SELECTION_AXES
from diffdpo.evaluation.composites import HARMONY_WITNESSES
from diffdpo.evaluation.effects import PairedSample
from diffdpo.evaluation.real_songs import RealSongs
from diffdpo.evaluation.witness_report import (
    ALL_WITNESSES,
    FORM_WITNESS,
    fault_line,
    shipped_bands,
    witness_faults,
    witness_report,
)
from diffdpo.mining.values import Candidate

WITNESSES = (*BAND_WITNESSES, FORM_WITNESS)


def _pairs(shift: dict[str, float], prompts: int = 12) -> list[PairedSample]:
    """Songs whose witnesses are normal draws, and the same songs moved by `shift`."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(2 * prompts):
        base = {axis: float(rng.normal()) for axis in WITNESSES}
        aligned = {axis: value + shift.get(axis, 0.0) for axis, value in base.items()}
        pairs.append(PairedSample(f"p{i // 2}.{i % 2}", f"p{i // 2}", f"p{i // 2}", base, aligned))
    return pairs


def test_a_shift_of_one_trait_is_its_composites_effect() -> None:
    pairs = _pairs({"beat.coherence": 0.5})
    report = witness_report(pairs, [])
    assert report is not None
    deviation = np.std([pair.baseline["beat.coherence"] for pair in pairs], ddof=1)
    assert report.composites["W.rhythm"].mean == pytest.approx(0.5 / deviation)
    assert report.composites["W.harmony"].mean == pytest.approx(0, abs=1e-12)
    assert report.composites["W.form"].mean == pytest.approx(0, abs=1e-12)
    assert list(report.composites) == ["W.harmony", "W.rhythm", "W.form", "W.all"]


def test_songs_that_leave_the_band_are_over_optimised() -> None:
    bands = {axis: Band(-1.3, 1.3) for axis in BAND_WITNESSES}
    inside, outside = (
        witness_report(_pairs(dict.fromkeys(HARMONY_WITNESSES, shift)), [], bands=bands)
        for shift in (0.0, 3.0)
    )
    assert inside is not None
    assert inside.band is not None
    assert not inside.band.over_optimised
    assert outside is not None
    assert outside.band is not None
    assert outside.band.over_optimised
    assert set(outside.band.witnesses_outside) == set(HARMONY_WITNESSES)
    assert any("in-band share" in line for line in outside.lines)


def test_best_of_n_of_the_base_is_found_where_the_gains_meet() -> None:
    """Selection axes order the candidates as their witnesses do: the best of two of 0 and 1 gains one half."""
    pairs = _pairs({})
    scale = {axis: np.std([pair.baseline[axis] for pair in pairs], ddof=1) for axis in WITNESSES}
    candidates = [
        Candidate(
            prompt_id=f"c{i}",
            group=f"c{i}",
            sample_id=f"c{i}.{step}",
            scores={axis: step * float(scale[axis]) for axis in WITNESSES}
            | dict.fromkeys(SELECTION_AXES, float(step)),
        )
        for i in range(12)
        for step in range(2)
    ]
    half = {axis: 0.5 * float(scale[axis]) for axis in WITNESSES}
    report = witness_report(_pairs(half), [], candidates)
    assert report is not None
    assert report.n_equivalent is not None
    assert report.n_equivalent.interval.value == pytest.approx(2.0)
    assert [(point.n, point.gain.value) for point in report.best_of_n] == [
        (1, 0.0),
        (2, pytest.approx(report.composites["W.all"].mean)),
    ]
    assert [point.kl for point in report.best_of_n] == pytest.approx([0.0, np.log(2) - 0.5])


def test_the_gain_of_each_song_is_in_the_order_of_the_pairs() -> None:
    pairs = _pairs({"beat.coherence": 0.5})
    still = [replace(pair, aligned=pair.baseline) for pair in pairs[1:]]
    report = witness_report([pairs[0], *still], [])
    assert report is not None
    assert report.gains[0] > 0
    assert report.gains[1:] == pytest.approx([0.0] * len(still))
    assert np.mean(report.gains) == pytest.approx(report.composites["W.all"].mean)


def test_a_witness_that_was_mined_is_none() -> None:
    assert witness_report(_pairs({}), ["note.key"]) is None
    without_form = witness_report(_pairs({}), [FORM_WITNESS])
    assert without_form is not None
    assert "W.form" not in without_form.composites
    assert "no witness of form has scores of all songs" in without_form.definition


def test_bands_of_the_package_hold_all_nine_witnesses() -> None:
    bands = shipped_bands()
    assert set(bands) > set(BAND_WITNESSES)
    assert all(band.low < band.high for band in bands.values())


def _real_songs(pairs: list[PairedSample], axes: tuple[str, ...], shift: dict[str, float]) -> RealSongs:
    """The base's songs as real ones, moved by `shift`; a window without a number behind them."""
    rows = [[pair.baseline[axis] + shift.get(axis, 0.0) for axis in axes] for pair in pairs]
    count = len(rows) + 1
    empty = ("",) * count
    return RealSongs(
        axes=axes,
        values=np.array([*rows, [np.nan] * len(axes)]),
        song=tuple(f"s{k}" for k in range(count)),
        artist=tuple(f"a{k // 4}" for k in range(count)),
        title=empty, package=empty, style=empty, tags=empty, split=empty, group=empty,
        in_training=(False,) * count,
        start_s=(0.0,) * count,
        versions={},
    )  # fmt: skip


def test_real_songs_are_put_on_the_scale_of_the_base() -> None:
    """The base's own songs as real ones have 0 on all composites; more beat counts as it does in a model."""
    pairs = _pairs({"beat.coherence": 2.0})
    deviation = float(np.std([pair.baseline["beat.coherence"] for pair in pairs], ddof=1))
    real = _real_songs(pairs, WITNESSES, {"beat.coherence": 0.5 * deviation})
    report = witness_report(pairs, [], real=real)
    assert report is not None
    assert list(report.real) == ["W.harmony", "W.rhythm", "W.form", "W.all"]
    means = {name: interval.value for name, interval in report.real.items()}
    assert means["W.rhythm"] == pytest.approx(0.5)
    assert [means["W.harmony"], means["W.form"]] == pytest.approx([0.0, 0.0], abs=1e-12)
    effect = witness_report(_pairs({"beat.coherence": 0.5 * deviation}), [])  # the same shift of the model
    assert effect is not None
    assert means["W.all"] == pytest.approx(effect.composites["W.all"].mean)
    assert all(at.low < at.value < at.high for at in report.real.values())
    assert any(line.startswith("real songs on this scale: W.harmony") for line in report.lines)
    without_form = _real_songs(pairs, tuple(axis for axis in WITNESSES if axis != FORM_WITNESS), {})
    report = witness_report(pairs, [], real=without_form)
    assert report is not None
    assert report.real == {}


def test_a_witness_that_cannot_speak_is_named_and_the_others_are_heard() -> None:
    pairs = _pairs({})
    assert witness_faults(pairs, []) == {}
    assert fault_line({}) == ""
    same = [replace(pair, baseline={**pair.baseline, FORM_WITNESS: 0.5}) for pair in pairs]
    assert witness_faults(same, ["note.recur"]) == {
        FORM_WITNESS: "the same for all songs of the base", "note.recur": "mined"
    }  # fmt: skip
    report = witness_report(same, [])
    assert report is not None
    assert "W.form" not in report.composites
    assert fault_line(witness_faults(same, ["note.recur"])) == (
        "not measured: form in W.all and the in-band share (form.order: the same for all songs of the base; "
        "note.recur: mined); their scorers are notes, beats and form"
    )
    flat = [replace(pair, baseline={**pair.baseline, "note.key": 0.5}) for pair in pairs]
    assert witness_report(flat, []) is None
    bare = [replace(pair, baseline={}, aligned={}) for pair in pairs]
    assert set(witness_faults(bare, []).values()) == {"without a score of 48 of 48 songs"}
    line = fault_line(witness_faults(bare, []))
    assert line.startswith("not measured: W.all and the in-band share (")
    assert all(axis in line for axis in ALL_WITNESSES)


def test_one_song_without_a_score_takes_its_witness_away() -> None:
    pairs = _pairs({})
    aligned = {axis: value for axis, value in pairs[3].aligned.items() if axis != "note.clean"}
    pairs[3] = replace(pairs[3], aligned=aligned)
    assert witness_faults(pairs, []) == {"note.clean": "without a score of 1 of 48 songs"}
    assert "the in-band share (note.clean" in fault_line(witness_faults(pairs, []))
