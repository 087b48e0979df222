"""Mining: scores to preference pairs and ratings. Pure functions; a new rule is a file here and a line in RULES.

Rules of other packages are found by entry points in the group `diffdpo.rules`.
"""

from diffdpo.mining.advantages import advantages
from diffdpo.mining.base import Rule
from diffdpo.mining.best_versus_worst import BestVersusWorst
from diffdpo.mining.cross_pair import CrossPair
from diffdpo.mining.engine import MiningResult, finish_pairs, mine_candidates, with_spans
from diffdpo.mining.labels import pick_strongest, soften
from diffdpo.mining.novelty import novelty
from diffdpo.mining.pareto import Pareto
from diffdpo.mining.per_axis import PerAxis
from diffdpo.mining.real_versus_sample import RealVersusSample, uses_real_songs
from diffdpo.mining.reference import RealReference, build_reference, read_reference, write_reference
from diffdpo.mining.scale import group_by_prompt
from diffdpo.mining.spans import SpanConfig, find_spans
from diffdpo.mining.strong_domination import StrongDomination
from diffdpo.mining.union import Union
from diffdpo.mining.utilities import AXIS_UTILITIES, Linear, Saturating, Utility
from diffdpo.mining.values import (
    Candidate,
    Candidates,
    MinedPairs,
    Pair,
    PromptCandidates,
    to_candidates,
)
from diffdpo.registry import Table

RULES: Table[type] = Table(
    "rule",
    {
        "best_versus_worst": BestVersusWorst,
        "strong_domination": StrongDomination,
        "cross_pair": CrossPair,
        "pareto": Pareto,
        "per_axis": PerAxis,
        "real_versus_sample": RealVersusSample,
        "union": Union,
    },
)

__all__ = [
    "AXIS_UTILITIES",
    "RULES",
    "BestVersusWorst",
    "Candidate",
    "Candidates",
    "CrossPair",
    "Linear",
    "MinedPairs",
    "MiningResult",
    "Pair",
    "Pareto",
    "PerAxis",
    "PromptCandidates",
    "RealReference",
    "RealVersusSample",
    "Rule",
    "Saturating",
    "SpanConfig",
    "StrongDomination",
    "Union",
    "Utility",
    "advantages",
    "build_reference",
    "find_spans",
    "finish_pairs",
    "group_by_prompt",
    "mine_candidates",
    "novelty",
    "pick_strongest",
    "read_reference",
    "soften",
    "to_candidates",
    "uses_real_songs",
    "with_spans",
    "write_reference",
]
