"""Measures processor seconds and memory of starting the command line, beside those of `import torch`. JSON out.

    python tools/bench_start.py [--runs 5] [--only NAME …] [--typo VERB …] [--table] [--baseline FOLDER]

The commands are `--help`, `--version`, `presets`, every verb's `--dry-run` with its first preset of tiny/ and the
fewest arguments, and the answer to a misspelt key, each in a process of its own in an empty folder. `cpu_s` is the
user and system time of that process, `peak_mb` its peak resident memory (Linux). Both are medians over rounds, in
each of which every command and a bare `import torch` run once; `ratio` and `peak_ratio` are over `import torch`.
`modules` are those of HEAVY that a command has loaded when it ends. `--baseline` measures an older checkout, whose
presets are configs/*.yaml; a command that the checkout lacks gets its exit code in place of numbers.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from tools.bench.measure import markdown_table, round_values

TORCH = "import torch"
HEAVY = (
    "torch", "transformers", "peft", "librosa", "diffusers", "accelerate", "torchaudio", "scipy", "pyarrow",
    "soundfile", "pyloudnorm",
)  # fmt: skip
VERBS = (
    "prepare", "sample", "search", "score", "mine", "train", "evaluate", "sliders", "calibrate", "audit", "listen",
    "votes", "round", "demo",
)  # fmt: skip
WORDS = {
    "prepare": ("songs=songs",),
    "evaluate": ("baseline=runs/a", "aligned=runs/b", "scores=runs/scores", "out=runs/report"),
}
"""What a verb needs beside its preset, or without one."""
MISSPELT = "outt=runs/x"
PRINT_MODULES = """
import json, sys
from diffdpo.cli import app
sys.argv = ["diffdpo", *sys.argv[1:]]
try:
    app()
finally:
    print("\\n" + json.dumps([name for name in HEAVY if name in sys.modules]), file=sys.stderr)
"""


def preset(verb: str, folder: Path, by_path: bool) -> list[str]:
    """The first preset of a verb in configs/tiny, by its name or by its path; [] if it has none."""
    paths = [p for p in sorted((folder / "configs" / "tiny").glob("*.yaml")) if p.stem.split("_")[0] == verb]
    if not paths:
        return []
    name = paths[0].stem.partition("_")[2] or verb
    return [str(paths[0]) if by_path else f"tiny/{name}"]


def commands(folder: Path, by_path: bool, typos: Sequence[str]) -> dict[str, tuple[list[str], int]]:
    """The arguments of each command and its exit code, by the name in the result."""
    starts = {verb: [verb, *preset(verb, folder, by_path), *WORDS.get(verb, ())] for verb in VERBS}
    return {
        "help": (["--help"], 0),
        "version": (["--version"], 0),
        "presets": (["presets"], 0),
        **{f"{verb} --dry-run": ([*words, "--dry-run"], 0) for verb, words in starts.items()},
        **{f"{verb}, misspelt key": ([*starts[verb], MISSPELT], 2) for verb in typos},
    }


def run(python: Sequence[str], folder: Path) -> tuple[int, dict[str, float], str]:
    """Exit code, cost and standard error of a Python process that finds the package in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    with (
        tempfile.TemporaryDirectory() as empty,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, *python], cwd=empty, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        ) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    # The peak begins with that of the parent, which is why this file imports nothing large.
    cost = {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}
    return process.returncode, cost, text


def loaded_modules(words: Sequence[str], folder: Path) -> tuple[int, list[str]]:
    """Exit code of a command, and the modules of HEAVY that it has loaded when it ends."""
    code, _, text = run(["-c", f"HEAVY = {HEAVY}\n{PRINT_MODULES}", *words], folder)
    try:
        return code, json.loads(text.splitlines()[-1])
    except (IndexError, ValueError):
        raise SystemExit(f"diffdpo {' '.join(words)} failed:\n{text[-2000:]}") from None


def measure_commands(folder: Path, table: Mapping[str, tuple[list[str], int]], runs: int) -> dict[str, Any]:
    """The result of each command. The first run of a command lists modules, and fills the caches of files."""
    results: dict[str, dict[str, Any]] = {}
    for name, (words, expected_code) in table.items():
        code, modules = loaded_modules(words, folder)
        results[name] = {"modules": modules} if code == expected_code else {"exit_code": code}
    programs = {
        name: ["-m", "diffdpo", *table[name][0]] for name, result in results.items() if "modules" in result
    }
    programs[TORCH] = ["-c", TORCH]
    costs: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for number in range(runs):
        for name, program in programs.items():
            code, cost, text = run(program, folder)
            if name != TORCH and code != table[name][1]:
                raise SystemExit(f"{name} ended with exit code {code}:\n{text[-2000:]}")
            costs[name].append(cost)
        print(f"round {number + 1} of {runs}", file=sys.stderr, flush=True)
    medians = {
        name: {key: median(c[key] for c in rounds) for key in rounds[0]} for name, rounds in costs.items()
    }
    bare = medians.pop(TORCH)
    for name, cost in medians.items():
        ratios = {"ratio": cost["cpu_s"] / bare["cpu_s"], "peak_ratio": cost["peak_mb"] / bare["peak_mb"]}
        results[name] = round_values(cost | ratios, digits=3) | results[name]  # more than a start repeats
    return {TORCH: round_values(bare, digits=3), "commands": results}


def commands_table(result: Mapping[str, Any]) -> str:
    """The result in Markdown, a row a command."""
    head = ["command", "CPU s", "of `import torch`", "peak MB", "of `import torch`", "heavy modules"]
    bare = result[TORCH]
    rows = [[f"`{TORCH}`", f"{bare['cpu_s']:.2f}", "1", f"{bare['peak_mb']:.0f}", "1", ""]]
    for name, row in result["commands"].items():
        cells = (
            [f"exit code {row['exit_code']}", "", "", "", ""]
            if "exit_code" in row
            else [
                f"{row['cpu_s']:.2f}", f"{row['ratio']:.2f}", f"{row['peak_mb']:.0f}", f"{row['peak_ratio']:.2f}",
                ", ".join(row["modules"]),
            ]
        )  # fmt: skip
        rows.append([name, *cells])
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="commands, by their names in the result")
    parser.add_argument(
        "--typo", nargs="+", choices=VERBS, default=["train"], help="verbs given a misspelt key"
    )
    parser.add_argument("--baseline", type=Path, metavar="FOLDER", help="an older checkout to measure")
    parser.add_argument("--table", action="store_true", help="Markdown instead of JSON")
    args = parser.parse_args()
    folder = (args.baseline or ROOT).resolve()
    table = commands(folder, args.baseline is not None, args.typo)
    for name in args.only or ():
        if name not in table:
            parser.error(f"no command {name!r}; there are {', '.join(table)}")
    table = {name: command for name, command in table.items() if name in (args.only or table)}
    result = {
        "python": platform.python_version(),
        "runs": args.runs,
        **measure_commands(folder, table, args.runs),
    }
    print(commands_table(result) if args.table else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
