"""An audit as Markdown: validity of every axis, traits by methods, and what choosing by an axis brings."""

import math
from collections.abc import Mapping, Sequence

from diffdpo.evaluation.composites import ALL_TRAITS
from diffdpo.evaluation.validity_report import Audit, AxisAudit
from diffdpo.statistics import Effect, Interval

ABSENT = "\N{EN DASH}"


def audit_markdown(audit: Audit) -> str:
    """The tables with a sentence each, as a Markdown page."""
    sections = [
        "# Validity of axes",
        f"{audit.n_songs} songs of {audit.n_prompts} prompts. Correlations are within prompts, intervals (95 %) "
        "over prompts; sd is the standard deviation over these songs.",
        validity_table(audit),
        f"Held constant: {', '.join(name.partition('.')[2] for name in audit.covariates)}. Real songs less these "
        "songs, and these songs less worse ones, in sd.",
    ]
    if any(audit.matrix.values()):
        sections += [
            "## Mined axes by witnesses",
            "Correlation within prompts, in brackets with texture held constant; bold for one trait.",
            matrix_table(audit),
        ]
    largest = max((n for axis in audit.axes for n in axis.transfer), default=0)
    if largest:
        sections += [
            f"## Best of {largest}",
            f"What the best of {largest} songs of a prompt by an axis (row) gains on each axis, in sd; bold where "
            "the interval leaves out zero.",
            transfer_table(audit, largest),
        ]
    return "\n\n".join(sections) + "\n"


def validity_table(audit: Audit) -> str:
    """A row for each axis: reliability, convergence, other traits, real and worse songs, judgement."""
    rungs = list(dict.fromkeys(name for axis in audit.axes for name in axis.rungs))
    head = ["axis", "trait", "role", "reliable", "agrees with its trait", "texture constant"]
    rows = [[*head, "other traits", "real songs", *rungs, "judgement"]]
    for axis in audit.axes:
        rows.append(
            [
                axis.axis,
                axis.trait,
                axis.role,
                _number(axis.reliability.value),
                _interval(axis.convergent),
                _interval(axis.partial),
                _strongest(axis.discriminant),
                _interval(axis.real),
                *(_effect(axis.rungs.get(name)) for name in rungs),
                axis.judgement.text,
            ]
        )
    return markdown_rows(rows)


def matrix_table(audit: Audit) -> str:
    """Mined axes by witnesses: correlation, and with texture held constant."""
    traits = {axis.axis: axis.trait for axis in audit.axes}
    witnesses = [axis.axis for axis in audit.axes if axis.role != "mined"]
    rows = [["", *witnesses]]
    for axis, by_witness in audit.matrix.items():
        cells = []
        for witness in witnesses:
            partial = audit.partial_matrix[axis][witness]
            value = _number(by_witness[witness].value)
            value = f"**{value}**" if traits[axis] == traits[witness] and value != ABSENT else value
            cells.append(f"{value} [{_number(partial.value)}]")
        rows.append([axis, *cells])
    return markdown_rows(rows)


def transfer_table(audit: Audit, n: int) -> str:
    """The gain of best-of-n by each mined axis on each axis and composite."""
    transfers = {axis.axis: axis.transfer[n] for axis in audit.axes if n in axis.transfer}
    targets = list(dict.fromkeys(name for gains in transfers.values() for name in gains))
    composites = [name for name in targets if name.startswith(ALL_TRAITS.partition(".")[0] + ".")]
    targets = [*composites, *(name for name in targets if name not in composites)]
    rows = [["chosen by", *targets]]
    rows += [[axis, *(_gain(gains.get(name)) for name in targets)] for axis, gains in transfers.items()]
    return markdown_rows(rows)


def summary_lines(audit: Audit) -> list[str]:
    """The judgement of every axis, a line each."""
    width = max(len(axis.axis) for axis in audit.axes)
    return [f"{axis.axis:<{width}}  {axis.judgement.text}" for axis in audit.axes]


def metric_row(axis: AxisAudit) -> dict[str, float | str | bool | None]:
    """The numbers of an axis in a flat object, as in metrics.jsonl; None for what is not known."""
    values: dict[str, float | None] = {
        "reliability": axis.reliability.value,
        "corrected": axis.agreement_without_noise,
    }
    for name, interval in (("convergent", axis.convergent), ("partial", axis.partial), ("real", axis.real)):
        values[name] = interval.value if interval is not None else None
    values |= {f"discriminant.{trait}": interval.value for trait, interval in axis.discriminant.items()}
    values |= {f"worse.{name}": effect.mean for name, effect in axis.rungs.items()}
    numbers = {
        name: value if value is None or math.isfinite(value) else None for name, value in values.items()
    }
    return {"axis": axis.axis, "trait": axis.trait, "valid": axis.judgement.valid, **numbers}


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _number(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else ABSENT


def _interval(interval: Interval | None) -> str:
    if interval is None or not math.isfinite(interval.value):
        return ABSENT
    return f"{interval.value:+.2f} ({interval.low:+.2f} {interval.high:+.2f})"


def _effect(effect: Effect | None) -> str:
    return _interval(Interval(effect.mean, effect.low, effect.high)) if effect is not None else ABSENT


def _gain(interval: Interval | None) -> str:
    if interval is None or not math.isfinite(interval.value):
        return ABSENT
    text = _number(interval.value)
    return f"**{text}**" if interval.low > 0 or interval.high < 0 else text


def _strongest(discriminant: Mapping[str, Interval]) -> str:
    """The strongest correlation with another trait."""
    usable = {name: i for name, i in discriminant.items() if math.isfinite(i.value)}
    if not usable:
        return ABSENT
    name = max(usable, key=lambda name: abs(usable[name].value))
    return f"{name} {_interval(usable[name])}"
