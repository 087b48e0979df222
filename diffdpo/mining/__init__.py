"""Mining: scores to preference pairs and ratings. Pure functions; a new rule is a file here and a line in RULES."""

from diffdpo.mining.advantages import advantages
from diffdpo.mining.base import Mined, Rule, z_scores
from diffdpo.mining.best_versus_worst import BestVersusWorst
from diffdpo.mining.cross_pair import CrossPair
from diffdpo.mining.labels import soften, strongest
from diffdpo.mining.pareto import Pareto
from diffdpo.mining.per_axis import PerAxis
from diffdpo.mining.spans import SpanConfig, find_spans
from diffdpo.mining.strong_domination import StrongDomination
from diffdpo.mining.union import Union
from diffdpo.registry import Table

RULES: Table[type] = Table(
    "rule",
    {
        "best_versus_worst": BestVersusWorst,
        "strong_domination": StrongDomination,
        "cross_pair": CrossPair,
        "pareto": Pareto,
        "per_axis": PerAxis,
        "union": Union,
    },
)

__all__ = [
    "RULES",
    "BestVersusWorst",
    "CrossPair",
    "Mined",
    "Pareto",
    "PerAxis",
    "Rule",
    "SpanConfig",
    "StrongDomination",
    "Union",
    "advantages",
    "find_spans",
    "soften",
    "strongest",
    "z_scores",
]
