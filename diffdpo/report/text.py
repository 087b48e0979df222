"""Numbers, times and names of axes as the text of a page."""

import math
import re

from diffdpo.report.plots import MINUS


def name(axis: str) -> str:
    """The name of an axis without its family: of 'family.some_quality', 'some quality'."""
    return axis.split(".", 1)[-1].replace("_", " ")


def family(axis: str) -> str:
    """The family of an axis: of 'family.some_quality', 'family'; empty for a name without one."""
    return axis.split(".", 1)[0].replace("_", " ") if "." in axis else ""


def number(value: float, style: str = "#.3g") -> str:
    """A number in three significant digits, with a typographic minus; a dash where it is not finite."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    if style == "#.3g" and (abs(value) >= 1000 or value == 0):
        style = ",.0f"
    return f"{value:{style}}".rstrip(".").replace("-", MINUS)


def format_signed(value: float, style: str = ".2f") -> str:
    """A number with its sign, plus included; zero has none."""
    return number(0.0 if abs(value) < 1e-12 else value, "g" if value == 0 else f"+{style}")


def percent(share: float) -> str:
    """A share of one in whole percent."""
    return f"{100 * share:.0f} %"


def typographic(sentence: str) -> str:
    """A sentence with real minus signs before its numbers."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", MINUS, sentence)


def clock(seconds: float) -> str:
    """A time as minutes and seconds, m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
