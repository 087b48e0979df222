"""The box of the verdict: every number that there is, and none that there is not."""

import math
import re
from dataclasses import replace

import pytest

from diffdpo.evaluation.band import BandChange
from diffdpo.evaluation.best_of_n import EquivalentN
from diffdpo.evaluation.diversity import DiversityChange, SpreadChange
from diffdpo.evaluation.verdict import Evidence, Verdict, reach_verdict
from diffdpo.evaluation.witness_report import WitnessReport
from diffdpo.report.figures import verdict_figures
from diffdpo.report.page import Report, render
from diffdpo.report.plots import MINUS
from diffdpo.statistics import Effect, Interval


def effect(mean: float, half: float = 0.1) -> Effect:
    return Effect(mean, mean - half, mean + half, 0.5, mean, count=48, clusters=24, p_value=0.001)


BAND = BandChange(0.78, 0.6, math.nan, effect(-0.18, 0.05), ("note.scale",))
WITNESSES = WitnessReport(
    composites={"W.harmony": effect(1.2), "W.rhythm": effect(-0.3), "W.all": effect(0.05)},
    definition="W.all is the mean of harmony and rhythm",
    band=BAND,
    n_equivalent=EquivalentN(Interval(2.25, 1.5, math.inf), 10, 0.05),
)


def everything() -> Verdict:
    """A verdict of a model that broke every rule but drift, whose numbers are added."""
    verdict = reach_verdict(
        Evidence(
            judges={"note.key": effect(-0.4)},
            band=BAND,
            diversity={"Vendi <score>": DiversityChange(40, 30, Interval(0.75, math.nan, math.nan))},
            spreads={"note.triad": SpreadChange(1.0, 0.5, Interval(0.5, 0.4, 0.6), 0.001, 24)},
            winner_error=1.3,
            lyrics=effect(0.1, 0.05),
        )
    )
    return replace(verdict, numbers={**verdict.numbers, "drift": {"kl": 55.2, "limit": 50.0}})


def test_every_number_of_the_evidence_is_shown() -> None:
    figures = {f.label: f for f in verdict_figures(everything(), WITNESSES)}
    shown = {label: (f.value, f.detail, f.direction) for label, f in figures.items()}
    assert shown == {
        "W.harmony": ("+1.20", "+1.10 to +1.30 SD", "better"),
        "W.rhythm": (f"{MINUS}0.30", f"{MINUS}0.40 to {MINUS}0.20 SD", "worse"),
        "W.all": ("+0.05", f"{MINUS}0.05 to +0.15 SD", "unclear"),
        "as good as the best of": ("2.2", "1.5 to above 10; of the base's songs", ""),
        "in-band share, base and aligned": (
            "0.78 → 0.60",
            f"{MINUS}0.180 ({MINUS}0.230 to {MINUS}0.130)",
            "worse",
        ),
        "diversity: Vendi <score>": (f"{MINUS}25 %", "40.0 to 30.0", ""),
        "smallest spread within prompts": ("0.50", "0.40 to 0.60 of the base's: note.triad", ""),
        "error of held-out winners": ("1.30", "times the reference's; limit 1.1", ""),
        "drift, nats a song": ("55.2", "limit 50", ""),
        "phoneme error rate": ("+0.100", "+0.050 to +0.150", ""),
    }


@pytest.mark.parametrize(
    ("drift", "detail"),
    [
        ({"kl": 12.0, "limit": math.inf}, "no limit"),
        ({"kl": 12.0, "limit": 40.0, "low": 10.0, "high": 14.0}, "10.0 to 14.0; limit 40"),
    ],
)
def test_drift_is_shown_with_what_is_known_of_it(drift: dict[str, float], detail: str) -> None:
    verdict = Verdict(True, (), {"drift": drift})
    (figure,) = verdict_figures(verdict, None)
    assert (figure.value, figure.detail) == ("12.0", detail)


def test_the_page_says_why_a_model_did_not_pass() -> None:
    verdict = everything()
    report = Report(title="t", facts={}, effects=[], verdict=verdict, witnesses=WITNESSES)
    page = render(report)
    assert "Not passed" in page
    reasons = re.findall(r"<li>(.*)</li>", page)
    assert len(reasons) == len(verdict.reasons) == 7
    assert reasons[0] == "The judge note.key fell by 0.4 (0.3 to 0.5)."
    assert f"Diversity: Vendi &lt;score&gt; changed by {MINUS}25%." in reasons
    assert "<score>" not in page


def test_the_page_names_what_was_not_measured() -> None:
    verdict = reach_verdict(Evidence(judges={"note.key": effect(0.4)}))
    page = render(Report(title="t", facts={}, effects=[], verdict=verdict))
    assert "Not passed" not in page
    assert "Not measured: band, diversity, spreads, drift." in page
    assert "real" not in page.split("</style>")[1].split("<script>")[0]
    assert 'id="verdict"' not in render(Report(title="t", facts={}, effects=[]))
