"""What the benches share: one measurement a process, and the memory it needed."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def memory_mb() -> dict[str, float]:
    """Peak resident memory of this process, and what is anonymous now: copies, not pages of a mapped file."""
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


def apart(script: str, *arguments: object) -> dict[str, Any]:
    """What `script` prints as JSON when run in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Four digits are more than a bench repeats."""
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()
    }
