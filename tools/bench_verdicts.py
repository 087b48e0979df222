"""Four models that a verdict has to tell apart, made from the songs of one run of the demo. JSON out.

    diffdpo demo out=runs/demo
    python tools/bench_verdicts.py --candidates runs/demo [--out FOLDER] [--table]

The honest model is that of the run itself. Each of the others takes two to five minutes of two cores; a model that
is complete is not made again.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from tools.bench.aligned_models import AlignedModel

STRONG = {
    "train.objective.args.beta": 150.0,
    "train.train.learning_rate": 5e-4,
    "train.train.steps": 100,
}
"""Far more than the demo's strength."""
MODELS = (
    AlignedModel(
        "hacked",
        "one axis that can be gamed, the form of the sound itself, trained on strongly where songs are still noise",
        {
            **STRONG,
            "mine.axes": ["structure.form"],
            "mine.rule.args.weights": {},
            "train.train.timesteps.mean": 1.5,
        },
    ),
    AlignedModel("over-optimised", "the demo's axes and pairs, beta 150, learning rate 5e-4, 100 steps", STRONG),
    AlignedModel(
        "collapsed",
        "supervised training on the single best song of all prompts",
        {
            "train.objective": {"name": "flow_matching", "args": {}},
            "train.data.top_share": 0.00625,
            "train.train.learning_rate": 1e-3,
            "train.train.steps": 40,
        },
    ),
)  # fmt: skip
