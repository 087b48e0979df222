"""The mining rules that the contract tests run: every registered one, and the options that change what it does."""

import math
from dataclasses import dataclass

from diffdpo.mining import (
    RULES,
    BestVersusWorst,
    CrossPair,
    Pareto,
    PerAxis,
    Rule,
    StrongDomination,
    Union,
)


@dataclass(frozen=True)
class RuleCase:
    """A rule with its options, and what it promises beyond what all rules must do."""

    rule: Rule
    one_sided: bool = True
    """No song is winner of one pair and loser of another on the same axis."""
    affine: bool = True
    """Another unit of an axis, or another zero, changes nothing."""


CASES: dict[str, dict[str, RuleCase]] = {
    "best_versus_worst": {
        "": RuleCase(BestVersusWorst()),
        "weighted_sum": RuleCase(
            BestVersusWorst(min_axis_margin=-math.inf, weights={"melody": 2.0}, pairs_per_prompt=3)
        ),
    },
    "strong_domination": {
        "": RuleCase(StrongDomination()),
        "one_primary": RuleCase(
            StrongDomination(primary=["sound"], primary_percentile=50, other_percentile=0)
        ),
    },
    "cross_pair": {
        "": RuleCase(CrossPair()),
        "fails_one": RuleCase(CrossPair(loser="fails_one", pairs_per_prompt=4)),
        "fails_both": RuleCase(CrossPair(couples=[["melody", "sound"]], loser="fails_both")),
    },
    "pareto": {
        "": RuleCase(Pareto()),
        "counted_wins": RuleCase(
            Pareto(temperature=0.0, losers="dominated", strict=True, pairs_per_prompt=9)
        ),
    },
    "per_axis": {
        "": RuleCase(PerAxis()),
        "each_axis_alone": RuleCase(PerAxis(tolerance=math.inf, min_margin=0.1, pairs_per_prompt=4)),
    },
    "union": {
        "": RuleCase(
            Union([StrongDomination(), PerAxis(tolerance=math.inf), CrossPair(), Pareto(), BestVersusWorst()])
        ),
    },
}
"""Axes that are named here are those of support.candidates."""
OF_DATA_SETS = {"real_versus_sample"}
"""Rules whose winners are no candidates: see tests/unit/mining/test_real_versus_sample.py."""


def rule_cases() -> dict[str, RuleCase]:
    """All cases by name. A rule of another package has its defaults, and promises what all rules must do."""
    cases = {}
    for name in sorted(set(RULES) - OF_DATA_SETS):
        options = CASES.get(name) or {"": RuleCase(RULES[name](), one_sided=False, affine=False)}
        cases |= {f"{name}-{option}".rstrip("-"): case for option, case in options.items()}
    return cases
