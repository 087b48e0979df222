"""The audit of axes that are made to be valid, due to texture, gamed, or about nothing."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from diffdpo.evaluation.validity_report import (
    AuditSongs,
    AxisFacts,
    WorseSongs,
    audit_axes,
    composite_columns,
    independent_axes,
    real_difference,
)
from diffdpo.evaluation.validity_tables import audit_markdown, metric_row, summary_lines, validity_table
from diffdpo.runs import write_json

PROMPTS = [f"p{number:02d}" for number in range(24) for _ in range(10)]
FACTS = [
    AxisFacts(axis="honest", trait="harmony", role="mined"),
    AxisFacts(axis="clear", trait="rhythm", role="mined"),
    AxisFacts(axis="gamed", trait="harmony", role="mined"),
    AxisFacts(axis="lone", trait="production", role="mined"),
    AxisFacts(axis="ear", trait="harmony", role="judge"),
    AxisFacts(axis="rough", trait="harmony", role="diagnosis"),
    AxisFacts(axis="click", trait="rhythm", role="diagnosis"),
]


def songs():
    """`honest`, `gamed` and `ear` are one trait with noise of the same variance: they correlate 1/2.

    `clear` and `click` share nothing but texture. A half has twice the variance of noise. Worse songs have 1 less
    of the trait, and 2 more of what `gamed` adds to it.
    """
    rng = np.random.default_rng(11)
    n = len(PROMPTS)
    trait, texture = rng.standard_normal((2, n))
    trait += np.repeat(rng.standard_normal(24), 10)

    def axes(signal, scale, gain=0.0):
        noise = scale * rng.standard_normal((6, n))
        return {
            "honest": signal + noise[0],
            "clear": texture + 0.5 * noise[1],
            "gamed": signal + gain + noise[2],
            "lone": noise[3] / scale,
            "ear": signal + noise[4],
            "rough": -signal,
            "click": texture + 0.5 * noise[5],
        }

    values = axes(trait, 1.0)
    worse = axes(trait - 1, 1.0, gain=2.0)
    return AuditSongs(
        prompts=PROMPTS,
        values=values,
        halves=(axes(trait, math.sqrt(2)), axes(trait, math.sqrt(2))),
        texture={"texture.notes": texture},
        worse={"2 steps": WorseSongs(values=worse, prompts=PROMPTS, counterparts=list(range(n)))},
        real={"honest": np.full(30, values["honest"].mean() + values["honest"].std(ddof=1))},
        real_songs=[f"s{number}" for number in range(30)],
    )


@pytest.fixture(scope="module")
def audit():
    return audit_axes(FACTS, songs(), [2, 4])


def test_axes_are_judged_as_they_were_made(audit):
    judgements = {axis.axis: axis.judgement.text for axis in audit.axes}
    assert judgements == {
        "honest": "valid",
        "clear": "not shown: with texture held constant it does not agree with its trait",
        "gamed": "not shown: 2 steps scores higher",
        "lone": "not shown: nothing independent measures its trait",
        "ear": "valid",
        "rough": "not shown: it does not agree with its trait; 2 steps scores higher",
        "click": "not shown: with texture held constant it does not agree with its trait",
    }


def test_the_numbers_are_those_of_the_model(audit):
    axes = {axis.axis: axis for axis in audit.axes}
    honest = axes["honest"]
    assert honest.convergent_axes == ("ear",)
    assert honest.convergent.low < 0.5 < honest.convergent.high
    assert honest.reliability.low < 0.5 < honest.reliability.high
    assert honest.agreement_without_noise == pytest.approx(1.0, abs=0.2)  # one trait, measured twice
    assert honest.discriminant.keys() == {"rhythm"}
    assert honest.discriminant["rhythm"].low < 0 < honest.discriminant["rhythm"].high
    assert axes["clear"].convergent.low < 0.8 < axes["clear"].convergent.high
    assert honest.real.value == pytest.approx(1.0)
    assert axes["ear"].real is None
    spread = songs().values["honest"].std(ddof=1)
    assert honest.rungs["2 steps"].mean == pytest.approx(1 / spread, abs=0.2)
    assert honest.transfer.keys() == {2, 4}
    gain = honest.transfer[4]
    assert (
        gain["ear"].low < 0.5 * 1.0294 * math.sqrt(2 / 3) < gain["ear"].high
    )  # prompts are a third of the variance
    assert not axes["ear"].transfer
    assert (audit.n_songs, audit.n_prompts, audit.covariates) == (240, 24, ("texture.notes",))
    assert audit.matrix.keys() == {"honest", "clear", "gamed", "lone"}
    assert audit.matrix["clear"]["click"].value > 0.7
    assert abs(audit.partial_matrix["clear"]["click"].value) < 0.2


def test_judges_are_asked_before_diagnoses_and_mined_axes_by_witnesses():
    assert independent_axes(FACTS, FACTS[0], "harmony") == ("ear",)
    assert independent_axes(FACTS, FACTS[1], "rhythm") == ("click",)
    assert independent_axes(FACTS, FACTS[3], "production") == ()
    assert independent_axes(FACTS, FACTS[4], "harmony") == ("honest", "gamed")


def test_an_audit_without_worse_songs_shows_nothing():
    audit = audit_axes(FACTS, replace(songs(), worse={}, texture={}), [2])
    assert not any(axis.judgement.valid for axis in audit.axes)
    assert all("no worse songs were scored" in axis.judgement.reasons for axis in audit.axes)
    honest = audit.axes[0]
    assert honest.partial == honest.convergent  # nothing is held constant


def test_an_axis_without_numbers_is_shown_as_a_dash():
    data = songs()
    hole = dict.fromkeys(("honest",), np.full(len(PROMPTS), np.nan))
    data = replace(data, values={**data.values, **hole}, halves=(hole | {}, hole | {}), real={})
    data = replace(data, halves=tuple({**half, **hole} for half in songs().halves))
    audit = audit_axes(FACTS, data, [2])
    assert not audit.axes[0].judgement.valid
    assert validity_table(audit).split("\n")[2].count("\N{EN DASH}") >= 4


def test_the_page_has_every_axis_and_every_table(audit):
    page = audit_markdown(audit)
    assert page.startswith("# Validity of axes\n\n240 songs of 24 prompts.")
    assert "## Mined axes by witnesses" in page
    assert "## Best of 4" in page
    assert "Held constant: notes." in page
    for axis in audit.axes:
        assert f"| {axis.axis} | {axis.trait} | {axis.role} |" in page
    heads = [line for line in page.split("\n") if line.startswith("| ---")]
    assert len(heads) == 3
    assert summary_lines(audit)[0] == "honest  valid"


def test_report_and_metrics_are_plain_json(audit, tmp_path):
    write_json(tmp_path / "report.json", asdict(audit))
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["axes"][0]["judgement"] == {"valid": True, "reasons": []}
    assert stored["axes"][0]["transfer"]["4"]["ear"]["value"] > 0
    row = metric_row(audit.axes[3])
    assert row["axis"] == "lone"
    assert row["convergent"] is None
    json.dumps(row, allow_nan=False)


def test_real_songs_are_compared_in_deviations_of_the_candidates():
    candidates, prompts = np.array([0.0, 2.0, 0.0, 2.0]), ["a", "a", "b", "b"]
    deviation = candidates.std(ddof=1)
    interval = real_difference(candidates, prompts, np.array([3.0, 3.0]), ["x", "y"])
    assert interval.value == pytest.approx(2 / deviation)
    assert real_difference(np.ones(4), prompts, np.array([3.0]), ["x"]) is None
    assert real_difference(candidates, prompts, np.array([np.nan]), ["x"]) is None


def test_composites_need_their_witnesses():
    rng = np.random.default_rng(0)
    names = ("note.triad", "note.key", "note.scale", "beat.coherence")
    values = {name: rng.standard_normal(20) for name in names}
    assert set(composite_columns(values)) == {"W.harmony", "W.rhythm", "W.all"}
    assert set(composite_columns(values | {"form.order": rng.standard_normal(20)})) == {
        "W.harmony", "W.rhythm", "W.form", "W.all",
    }  # fmt: skip
    assert composite_columns({name: values[name] for name in names[:3]}) == {}
    assert composite_columns(values | {"note.key": np.full(20, np.nan)}) == {}
