"""Songs divided over processes, some of which have songs of their own: trainings are those of one process."""

import json

import pytest
from support.launch import rows, train_many, verb

WORDS = (
    "objective.name=dpo", "objective.args.beta=20", "train.steps=3", "train.global_batch=4", "train.per_device=1",
    "train.learning_rate=1e-4", "train.save_every=3", "train.trackers=[]", "train.lora.rank=4", "seed=1",
)  # fmt: skip
SHARED = {"pairs of processes": 2, "all processes": 4}


def words(out, pairs, model, *more):
    return [f"out={out}", f"data.pairs={pairs}", *model, *WORDS, *more]


@pytest.fixture(scope="module")
def models(bundle, published_models):
    kinds = {name: published_models[name] for name in ("ace_step", "stable_audio_3")}
    return {"tiny": (f"model.args.bundle={bundle}",), **kinds}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("context")


@pytest.fixture(scope="module")
def launched(folder, pairs, models):
    """The errors of all runs, by model and group, on four processes."""
    runs = {
        (name, group): words(
            folder / "four" / name / group.replace(" ", "_"), pairs, model, f"train.context_parallel={size}"
        )
        for name, model in models.items()
        for group, size in SHARED.items()
    }
    return dict(zip(runs, train_many(folder, "four", list(runs.values())), strict=True))


@pytest.mark.parametrize("name", ["tiny", "ace_step", "stable_audio_3"])
def test_four_processes_train_as_one(folder, pairs, models, launched, name):
    verb("train", *words(folder / "one" / name, pairs, models[name]))
    expected = rows(folder / "one" / name)
    assert len(expected) == 3
    for group in SHARED:
        assert launched[name, group] == ""
        out = folder / "four" / name / group.replace(" ", "_")
        assert json.loads((out / "manifest.json").read_text())["world"] == 4
        for row, divided in zip(expected, rows(out), strict=True):
            for key in ("loss", "grad_norm", "winner_error", "loser_error"):
                assert divided[key] == pytest.approx(row[key], rel=1e-5), f"{group}: {key}"
