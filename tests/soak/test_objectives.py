"""The matrix of objectives, weights and processes: losses and gradients of two processes are those of one."""

import math

import pytest
from support.launch import rows, train_many, verb
from support.songs import write_ratings, write_samples

from diffdpo.objectives import OBJECTIVES

WORDS = (
    "train.steps=4", "train.global_batch=4", "train.learning_rate=1e-3", "train.dropout.style=0.3",
    "train.trackers=[]", "seed=1", "model.name=tiny",
)  # fmt: skip
OLD = ("train.old.kind=ema", "train.old.ramp=0.1", "train.old.decay=0.5")
ON_PAIRS = ("dpo", "linear_dpo", "dspo", "mapo")
ON_RATINGS = {
    "flow_matching": ("data.top_share=0.3", "data.top_per_prompt=2"),
    "kto": ("objective.args.beta=20", "data.rated_margin=0.2"),
    "reward_weighted": ("data.group_size=3",),
    "dgpo": ("data.group_size=3",),
    "nft": ("data.group_size=3", *OLD),
    "awm": ("data.group_size=3", *OLD),
}
WEIGHTS = {"lora": ("train.lora.rank=4",), "full": ("train.learning_rate=1e-4",)}
RUNS = [(name, weights) for name in (*ON_PAIRS, *ON_RATINGS) for weights in WEIGHTS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bundle, pairs):
    """Each run in one process and in two."""
    folder = tmp_path_factory.mktemp("objectives")
    songs = write_samples(folder / "samples", prompts=6, per_prompt=4)
    names = [f"p{i:02d}.{k:03d}" for i in range(6) for k in range(4)]
    ratings = write_ratings(folder / "ratings", songs, {n: math.sin(5 * i + 1) for i, n in enumerate(names)})

    def line(name, weights, kind, per_device):
        data = [f"data.pairs={pairs}"] if name in ON_PAIRS else [f"data.ratings={ratings}", *ON_RATINGS[name]]
        return [
            f"out={folder / kind / name / weights}", f"model.args.bundle={bundle}", *WORDS, *WEIGHTS[weights],
            f"objective.name={name}", *data, f"train.per_device={per_device}",
        ]  # fmt: skip

    for run in RUNS:
        verb("train", *line(*run, "one", 4))
    assert not any(train_many(folder, "two", [line(*run, "two", 2) for run in RUNS]))
    return folder


def test_every_objective_is_here():
    assert set(ON_PAIRS) | set(ON_RATINGS) == set(OBJECTIVES)


@pytest.mark.parametrize(("name", "weights"), RUNS)
def test_two_processes_give_the_trajectory_of_one(trained, name, weights):
    one, two = (rows(trained / kind / name / weights) for kind in ("one", "two"))
    assert len(one) == len(two) == 4
    for alone, both in zip(one, two, strict=True):
        assert alone == pytest.approx(both, rel=1e-4, abs=4e-4)
        for key in {"loss", "grad_norm"} & alone.keys():
            assert alone[key] == pytest.approx(both[key], rel=1e-4, abs=5e-6), key
