"""Where real songs lie on each axis: percentiles of windows of real songs, by style. Utilities aim there."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffdpo.errors import ConfigError, DataError, reason
from diffdpo.registry import closest
from diffdpo.runs import write_json

REFERENCE_PATH = Path(str(resources.files("diffdpo").joinpath("assets/targets/real_songs.json")))
"""The reference of the package: songs of the group `targets` through the tiny model's codec."""
PERCENTILES = (10, 25, 50, 75, 90)
ALL_STYLES = "all styles"
MIN_STYLE_WINDOWS = 20
"""Windows from which on a style has percentiles of its own; with fewer, those of all styles together hold."""


@dataclass(frozen=True, kw_only=True)
class StyleReference:
    """The windows of one style: how many there are, and their percentiles on each axis."""

    windows: int
    axes: Mapping[str, tuple[float, ...]]
    """By axis, the values at PERCENTILES."""


@dataclass(frozen=True, kw_only=True)
class RealReference:
    """Percentiles of windows of real songs by style, with those of all styles together."""

    styles: Mapping[str, StyleReference]
    """By style, in lower case; ALL_STYLES is always there."""
    versions: Mapping[str, str]
    """The fingerprint of every scorer whose values these are."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that the reference has."""
        return tuple(self.styles[ALL_STYLES].axes)

    def percentile(self, axis: str, percent: int, style: str = ALL_STYLES) -> float:
        """The value of an axis that `percent` of the windows of a style do not exceed."""
        return self.styles[style].axes[axis][PERCENTILES.index(percent)]

    def style_of(self, text: str) -> str:
        """The style of a prompt's text: of those it names as whole words, the one of fewest windows.

        The rarest is the most specific. ALL_STYLES where the text names none that has windows enough.
        """
        names = [name for name in self.styles if name != ALL_STYLES and _names(text, name)]
        return min(names, key=lambda name: (self.styles[name].windows, name), default=ALL_STYLES)

    def check_axes(self, axes: Collection[str], location: str) -> None:
        """ConfigError for an axis that the reference lacks."""
        for axis in axes:
            if axis not in self.axes:
                raise ConfigError(
                    f"{location}: no real songs on the axis {axis!r}.{closest(axis, self.axes)} "
                    f"Known: {', '.join(self.axes)}; `diffdpo reference` makes another"
                )

    def check_style(self, style: str, location: str) -> None:
        """ConfigError for a style that the reference lacks."""
        if style not in self.styles:
            raise ConfigError(
                f"{location}: no real songs of the style {style!r}.{closest(style, self.styles)} "
                f"Known: {', '.join(self.styles)}"
            )


def _names(text: str, style: str) -> bool:
    """Whether a text has a style's words, one after another and whole."""
    return re.search(rf"(?<!\w){re.escape(style)}(?!\w)", text.lower()) is not None


def split_styles(text: str) -> tuple[str, ...]:
    """The styles of a song from its text: what commas divide, in lower case, each once."""
    return tuple(dict.fromkeys(phrase for part in text.split(",") if (phrase := part.strip().lower())))


def build_reference(
    values: Float[np.ndarray, "window axis"],
    axes: Sequence[str],
    styles: Sequence[Collection[str]],
    versions: Mapping[str, str],
) -> RealReference:
    """The reference of windows that may have several styles each.

    Windows without a finite value on every axis are left out. DataError for fewer than MIN_STYLE_WINDOWS in all.
    """
    complete = np.isfinite(values).all(1)
    if complete.sum() < MIN_STYLE_WINDOWS:
        raise DataError(
            f"a reference needs {MIN_STYLE_WINDOWS} windows of real songs with a score on every axis, "
            f"got {int(complete.sum())}"
        )
    names = sorted({style for window in styles for style in window} - {ALL_STYLES})
    masks = {ALL_STYLES: complete}
    masks |= {name: complete & np.array([name in window for window in styles]) for name in names}
    return RealReference(
        styles={
            name: _describe_windows(values[mask], axes)
            for name, mask in masks.items()
            if mask.sum() >= MIN_STYLE_WINDOWS
        },
        versions=dict(versions),
    )


def _describe_windows(values: Float[np.ndarray, "window axis"], axes: Sequence[str]) -> StyleReference:
    columns = np.percentile(values, PERCENTILES, axis=0).T.tolist()
    return StyleReference(
        windows=len(values), axes={axis: tuple(row) for axis, row in zip(axes, columns, strict=True)}
    )


def write_reference(path: Path, reference: RealReference) -> None:
    """Write a reference as JSON."""
    styles = {
        name: {"windows": style.windows, "axes": style.axes} for name, style in reference.styles.items()
    }
    write_json(path, {"percentiles": PERCENTILES, "styles": styles, "versions": reference.versions})


def read_reference(path: Path = REFERENCE_PATH) -> RealReference:
    """The reference of a file, by default the one of the package. DataError for a file that is none."""
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        if tuple(tree["percentiles"]) != PERCENTILES:
            raise ValueError(f"percentiles {tree['percentiles']} instead of {list(PERCENTILES)}")
        styles = {name: _read_style(entry) for name, entry in tree["styles"].items()}
        if any(style.axes.keys() != styles[ALL_STYLES].axes.keys() for style in styles.values()):
            raise ValueError("styles with different axes")
        return RealReference(styles=styles, versions=dict(tree["versions"]))
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}: no reference of real songs ({reason(error)}); make it with `diffdpo reference`"
        ) from None


def _read_style(entry: Mapping[str, Any]) -> StyleReference:
    axes = {axis: tuple(float(value) for value in row) for axis, row in entry["axes"].items()}
    for axis, row in axes.items():
        if len(row) != len(PERCENTILES) or not np.isfinite(row).all() or sorted(row) != list(row):
            raise ValueError(f"{axis}: {row} are no percentiles")
    return StyleReference(windows=int(entry["windows"]), axes=axes)
