"""Composition: needs and takes of an objective from its terms, and the check that its data fits them."""

from dataclasses import fields
from typing import Any

from diffdpo.errors import ConfigError
from diffdpo.objectives.terms.restraints import Safeguard
from diffdpo.objectives.terms.weights import Span
from diffdpo.types import LossMetrics, Need, Objective, Outputs, Take

TAKES: tuple[Take, ...] = ("soft_label", "span")


def term_needs(objective: Any, *needs: Need) -> frozenset[Need]:
    """What an objective needs of the trainer: its own `needs` and those of its terms."""
    terms = [getattr(objective, f.name) for f in fields(objective)]
    if getattr(objective, "reduction", "mean") == "sum":  # the number of channels
        needs = (*needs, "velocities")
    return frozenset(needs).union(*(getattr(term, "needs", ()) for term in terms))


def term_takes(objective: Any) -> frozenset[Take]:
    """The data of pairs that an objective has a term for."""
    return frozenset(name for name in TAKES if getattr(objective, name, None) is not None)


def pair_errors(
    outputs: Outputs, span: Span | None, safeguard: Safeguard | None
) -> tuple[Outputs, LossMetrics]:
    """Outputs whose errors are those a margin is made of: over the span, the loser's under the safeguard."""
    span_outputs = outputs if span is None else span(outputs)
    return (span_outputs, {}) if safeguard is None else safeguard(span_outputs)


def check_takes(objective: Objective, name: str, *, soft_labels: bool, spans: bool, location: str) -> None:
    """ConfigError if the pairs hold soft labels or spans that the objective, as configured, does not take.

    `location` is the folder of the pairs, `name` the objective's name in the configuration. With a neutral term
    (span.share=0, soft_label.kind=ignore) such data is ignored.
    """
    if spans and "span" not in objective.takes:
        mend = (
            "set objective.args.span.share=0.5, or 0 to train on whole songs"
            if hasattr(objective, "span")
            else "mine without spans, or choose an objective with a span, such as dpo"
        )
        raise ConfigError(f"{location}: the pairs hold spans, which objective {name!r} does not take; {mend}")
    if soft_labels and "soft_label" not in objective.takes:
        mend = (
            "set objective.args.soft_label.kind=mixture, or ignore to take every pair for sure"
            if hasattr(objective, "soft_label")
            else "mine with soft_label_temperature=0, or choose an objective with a soft_label, such as dpo"
        )
        raise ConfigError(
            f"{location}: the pairs hold soft labels, which objective {name!r} does not take; {mend}"
        )
