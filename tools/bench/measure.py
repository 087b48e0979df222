"""What the benches share: a measurement in a process of its own, memory, rounded numbers and Markdown tables."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def memory_mb() -> dict[str, float]:
    """Memory of this process in MiB: the peak of what was resident, what is resident now, and what of that is
    anonymous, so no page of a mapped file. Only the peak where /proc is missing."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
        return {
            "peak_rss_mb": kilobytes["VmHWM"] / 1024,
            "rss_mb": kilobytes["VmRSS"] / 1024,
            "anonymous_mb": kilobytes["RssAnon"] / 1024,
        }
    except (OSError, KeyError):  # not Linux
        return {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def peak_mib(pid: int | str = "self") -> float | None:
    """Peak resident memory of a process so far, in MiB; None where /proc does not tell.

    VmHWM starts anew with the program; on Linux, ru_maxrss of getrusage starts with the peak of the parent.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def own_peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB; ends the program where it cannot be measured."""
    peak = peak_mib()
    if peak is None:
        raise SystemExit("error: /proc/self/status tells no peak; memory is measured on Linux only")
    return peak


def run_in_process(script: str, *arguments: object) -> dict[str, Any]:
    """The last line that `script` prints, read as JSON, from a run in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def round_values(values: Mapping[str, Any], digits: int = 4) -> dict[str, Any]:
    """The values with floats rounded to `digits` significant digits; four are more than a bench repeats."""
    return {
        key: float(f"{value:.{digits}g}") if isinstance(value, float) else value
        for key, value in values.items()
    }


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
