"""Four models that a verdict has to tell apart, made from the songs of one run of the demo. JSON out.

    diffdpo demo out=runs/demo
    python tools/bench_verdicts.py --candidates runs/demo [--out FOLDER] [--models hacked …] [--table]

The honest model is that of the run itself. Each of the others takes two to five minutes of two cores; what is
complete is not made again.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.progress import log
from tools.bench.aligned_models import AlignedModel, check_source, compare_model, run_model
from tools.bench.frontier import as_value
from tools.bench.frontier_file import verdict_text
from tools.bench.measure import markdown_table

HONEST = AlignedModel("honest", "the demo's recipe")
STRONG = {
    "mine.novelty": [],
    "mine.rule.args.weights": {},
    "train.objective.args.beta": 150.0,
    "train.train.learning_rate": 5e-4,
    "train.train.steps": 100,
    "adapter_strength": 1.5,
}
"""The demo's training without novelty, at twice its strength and more."""
MODELS = (
    AlignedModel(
        "hacked",
        "one axis that can be gamed, the form of the sound itself, trained on strongly where songs are still noise",
        {
            **STRONG,
            "mine.axes": ["structure.form"],
            "train.train.timesteps.mean": 1.5,
        },
    ),
    AlignedModel("over-optimised", "the demo's axes and steps without novelty, the adapter at 1.5 times", STRONG),
    AlignedModel(
        "collapsed",
        "supervised training on the single best song of all prompts",
        {
            "train.objective": {"name": "flow_matching", "args": {}},
            "mine.novelty": [],
            "mine.rule.args.weights": {},
            "adapter_strength": 1.5,
            "train.data.top_share": 0.00625,
            "train.train.learning_rate": 1e-3,
            "train.train.steps": 40,
        },
    ),
)  # fmt: skip


def model_verdict(model: AlignedModel, source: Path, out: Path) -> dict[str, Any]:
    """What a model's report says, the model made first unless it is there."""
    log(f"model {model.name}")
    run = source if model is HONEST else run_model(model, source, out / model.name)
    report = compare_model(run, out / f"{model.name}-verdict")
    verdict, witnesses = report["verdict"], report["witnesses"]
    return {
        "method": model.method,
        "passed": verdict["passed"],
        "reasons": verdict["reasons"],
        "numbers": verdict["numbers"],
        "composites": witnesses["composites"] if witnesses else {},
    }


def verdict_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers that decide, in Markdown, a row a model."""
    head = [
        "model", "W.all", "W.rhythm", "in-band share", "smallest diversity", "winners' error", "drift", "verdict",
    ]  # fmt: skip
    return markdown_table(head, [_cells(name, result) for name, result in results.items()])


def _cells(name: str, result: Mapping[str, Any]) -> list[str]:
    numbers, composites = result["numbers"], result["composites"]
    band, drift = numbers.get("band"), numbers.get("drift")
    changes = {key: value["change"] for key, value in (numbers.get("diversity") or {}).items()}
    lowest = min(changes, key=lambda key: changes[key], default="")
    winners = numbers.get("held-out winners")
    return [
        name,
        *(as_value(composites[axis]) if axis in composites else "" for axis in ("W.all", "W.rhythm")),
        as_value({**band, "mean": band["change"]}, 3) if band else "",
        f"{lowest} {changes[lowest]:+.0%}" if lowest else "",
        f"{winners['ratio']:.2f}" if winners else "",
        f"{drift['kl']:.3g} ({drift['low']:.3g} {drift['high']:.3g})" if drift else "",
        verdict_text(result),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--candidates", type=Path, default=Path("runs/demo"), help="a finished run of the demo"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench_verdicts"))
    models = {model.name: model for model in (*MODELS, HONEST)}
    parser.add_argument("--models", nargs="+", choices=models, default=list(models), metavar="MODEL")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    args = parser.parse_args(arguments)
    check_source(args.candidates)
    results = {name: model_verdict(models[name], args.candidates, args.out) for name in args.models}
    print(verdict_table(results) if args.table else json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
