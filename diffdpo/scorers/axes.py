"""Axes of all scorers: which are mined, which judge, and what each claims to measure."""

from collections.abc import Collection, Iterable, Sequence

from diffdpo.errors import ConfigError, DataError
from diffdpo.registry import closest
from diffdpo.scorers import SCORERS
from diffdpo.scorers.base import CompositeScorer, PartialJudge
from diffdpo.types import Prompt

NOT_QUALITY = {"audiobox.pc"}
"""Axes that measure no quality: more complex is not better."""
NO_JUDGES = {
    "tunejury.preference": (
        "TuneJury falls from .72 to .54 on songs of systems newer than its votes, and the order of its inputs is "
        "an assumption"
    ),
}
"""Axes that may never judge, with the reason; they can be mined when named."""
UNPROVEN_AXES = NOT_QUALITY | set(NO_JUDGES) | {
    "harmony.consonance", "rhythm.tempo", "production.balance", "adherence.style", "artefacts.mos",
}  # fmt: skip
"""Axes that are not shown to be valid on generated songs: mined only when named, and otherwise no judges."""


def check_axis_names(names: Iterable[str], key: str, others: Collection[str] = ()) -> None:
    """ConfigError for an axis that belongs to no scorer and is not among `others`, such as those with scores."""
    axes = [*(axis for scorer in SCORERS.values() for axis in scorer.axes), *others]
    for axis in names:
        if axis not in axes:
            raise ConfigError(
                f"{key}: unknown axis {axis!r}.{closest(axis, axes)} {_known_axes(axis, axes)}."
            )


def _known_axes(axis: str, axes: Iterable[str]) -> str:
    """The axes of the axis' own family, or else the families."""
    families: dict[str, list[str]] = {}
    for name in dict.fromkeys(axes):
        families.setdefault(name.partition(".")[0], []).append(name)
    family = axis.partition(".")[0]
    if family in families:
        return f"Known of {family}: {', '.join(families[family])}"
    return f"Known families: {', '.join(families)}"


def check_axis_controls(prompts: Iterable[Prompt]) -> None:
    """ConfigError for a prompt whose control `axis` belongs to no scorer: no model was trained on it."""
    for prompt in prompts:
        if axis := prompt.control("axis"):
            check_axis_names([str(axis)], f"prompt {prompt.id!r}: axis")


def judge_axes() -> tuple[str, ...]:
    """The axes that judge: those of judges, without their diagnoses."""
    judges = [scorer for scorer in SCORERS.values() if scorer.judge_only]
    return tuple(
        axis
        for scorer in judges
        for axis in (scorer.judges if isinstance(scorer, PartialJudge) else scorer.axes)
    )


def check_goal(axis: str, key: str) -> None:
    """ConfigError for an axis that does not exist, or that judges: what is fitted to it would be its own judge."""
    check_axis_names([axis], key)
    if axis in judge_axes():
        raise ConfigError(f"{key}: {axis} judges; what is fitted to it would leave nobody to judge its songs")


def diagnosis_axes(
    axes: Sequence[str], judges: Collection[str] = (), mined: Collection[str] = ()
) -> list[str]:
    """The axes that are watched and judge nothing.

    All but `judges` where some are named. By default those without shown validity, and what an axis of `mined`
    weighs.
    """
    if judges:
        return [axis for axis in axes if axis not in judges]
    held_out = {axis for scorer in SCORERS.values() if scorer.judge_only for axis in scorer.axes}
    watched = UNPROVEN_AXES | (held_out - set(judge_axes())) | component_axes(mined)
    return [axis for axis in axes if axis in watched]


def component_axes(axes: Collection[str]) -> set[str]:
    """The axes that composite axes among `axes` weigh."""
    scorers = [scorer for scorer in SCORERS.values() if set(axes) & set(scorer.axes)]
    return {
        axis
        for scorer in scorers
        for axis in (scorer.components if isinstance(scorer, CompositeScorer) else tuple[str, ...]())
    }


def check_judges(judges: Iterable[str], key: str = "judges") -> None:
    """ConfigError for an axis that belongs to no scorer, or that may not judge, with the reason."""
    names = list(judges)
    check_axis_names(names, key)
    for axis in names:
        if axis in NO_JUDGES:
            raise ConfigError(f"{key}: {axis} may not judge: {NO_JUDGES[axis]}; name another axis")


def unproven_judges(judges: Collection[str]) -> list[str]:
    """Those of some judges that are not shown to be valid: they may not say whether a model is better."""
    axes = [axis for scorer in SCORERS.values() for axis in scorer.axes]
    unproven_axes = set(diagnosis_axes(axes))
    return [axis for axis in judges if axis in unproven_axes]


def axis_traits() -> dict[str, str]:
    """The trait of every axis of every scorer."""
    return {axis: trait for scorer in SCORERS.values() for axis, trait in scorer.traits.items()}


def mined_axes(axes: Sequence[str], with_scores: Collection[str]) -> list[str]:
    """The axes to mine, by default all that have scores, are shown to be valid and belong to no judge.

    ConfigError for an axis of a judge and for one without scores, DataError when the default is empty.
    """
    judges = {axis for scorer in SCORERS.values() if scorer.judge_only for axis in scorer.axes}
    available = [axis for scorer in SCORERS.values() for axis in scorer.axes if axis in with_scores]
    for axis in axes:
        if axis in judges:
            raise ConfigError(f"the axis {axis!r} belongs to a judge, which is held out of mining")
        if axis not in available:
            check_axis_names([axis], "axes")
            raise ConfigError(
                f"no scores on the axis {axis!r}.{closest(axis, available)} Known: {', '.join(available)}."
            )
    selection = list(axes) or [axis for axis in available if axis not in judges | UNPROVEN_AXES]
    if not selection and (unproven := [axis for axis in available if axis in UNPROVEN_AXES]):
        raise DataError(
            f"the scores are on {', '.join(unproven)} only, not shown to be valid on generated songs and mined "
            f"only by name: axes=[{','.join(unproven)}]"
        )
    if not selection:
        raise DataError("there are no scores to mine; run `diffdpo score` first")
    return selection
