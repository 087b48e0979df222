"""Rated songs, groups and the best share of them, trained for real: same on two processes, and after a stop.

Every objective on two processes is in `make soak` (`tests/soak/test_objectives.py`).
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.launch import rows, train_many, verb
from support.songs import write_ratings, write_samples

from diffdpo.data.feedback import import_ratings
from diffdpo.models.adapters import ADAPTER
from diffdpo.training.config import export_folder

pytestmark = pytest.mark.slow

WORDS = (
    "train.steps=4", "train.global_batch=4", "train.learning_rate=1e-3", "train.save_every=2", "train.lora.rank=4",
    "train.dropout.style=0.3", "train.trackers=[]", "seed=1",
)  # fmt: skip
OLD = ("train.old.kind=ema", "train.old.ramp=0.1", "train.old.decay=0.5")
RUNS: dict[str, tuple[str, ...]] = {
    "kto": ("objective.name=kto", "objective.args.beta=20", "data.rated_margin=0.2"),
    "bco": (
        "objective.name=kto", "objective.args.utility=loss_averse", "objective.args.beta=20", "thumbs",
        "data.balance=true",
    ),
    "best": ("objective.name=flow_matching", "data.top_share=0.3", "data.top_per_prompt=2"),
    "nft": ("objective.name=nft", "data.group_size=3", *OLD),
    "awm": ("objective.name=awm", "data.group_size=3", *OLD),
    "slider": ("objective.name=slider", "sliders"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rated")
    songs = write_samples(folder / "samples", prompts=6, per_prompt=4)
    names = [f"p{i:02d}.{k:03d}" for i in range(6) for k in range(4)]
    mined = write_ratings(folder / "mined", songs, {n: math.sin(5 * i + 1) for i, n in enumerate(names)})
    csv = folder / "thumbs.csv"
    csv.write_text(
        "file,thumb\n" + "".join(f"{n}.flac,{'up' if i % 3 else 'down'}\n" for i, n in enumerate(names))
    )
    import_ratings(csv, [str(songs)], folder / "people")
    slider = {"name": "fast", "plus": "{neutral}, fast", "minus": "{neutral}, slow"}
    (folder / "sliders.jsonl").write_text(json.dumps(slider) + "\n")
    return {"mined": mined, "thumbs": folder / "people", "folder": folder}


@pytest.fixture(scope="module")
def trained(data, bundle) -> Path:
    """Every run alone, on two processes, and stopped half way."""
    out = data["folder"]

    def words(name, kind, *more):
        places = {"sliders": [f"data.sliders={out / 'sliders.jsonl'}", f"data.samples={out / 'samples'}"]}
        chosen = [w for word in RUNS[name] if word != "thumbs" for w in places.get(word, [word])]
        table = data["thumbs" if "thumbs" in RUNS[name] else "mined"]
        model = ("model.name=tiny", f"model.args.bundle={bundle}", f"data.ratings={table}")
        return [f"out={out / kind / name}", *model, *WORDS, *chosen, *more]

    alone = [words(name, "one", "train.per_device=4") for name in RUNS]
    stopped = [words(name, "stopped", "train.per_device=4", "train.steps=2") for name in RUNS]
    resumed = [words(name, "stopped", "train.per_device=4") for name in RUNS]
    for command in [*alone, *stopped, *resumed]:
        verb("train", *command)
    assert not any(train_many(out, "two", [words(name, "two", "train.per_device=2") for name in RUNS]))
    return out


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_trajectory_of_one(trained, name):
    one, two = (rows(trained / kind / name) for kind in ("one", "two"))
    assert json.loads((trained / "two" / name / "manifest.json").read_text())["world"] == 2
    assert len(one) == len(two) == 4
    for alone, shared in zip(one, two, strict=True):
        assert alone == pytest.approx(shared, rel=1e-4, abs=1e-4)  # gains and margins are small differences
        for key in {"loss", "grad_norm", "error"} & alone.keys():
            assert alone[key] == pytest.approx(shared[key], rel=1e-4), key


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(trained, name):
    assert rows(trained / "stopped" / name) == rows(trained / "one" / name)
    whole, resumed = (
        load_file(export_folder(trained / kind / name, 4) / ADAPTER) for kind in ("one", "stopped")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", RUNS)
def test_the_weights_move_and_every_number_is_finite(trained, name):
    assert all(math.isfinite(value) for row in rows(trained / "one" / name) for value in row.values())
    adapter = load_file(export_folder(trained / "one" / name, 4) / ADAPTER)
    ups = [tensor for key, tensor in adapter.items() if "lora_B" in key]
    assert ups
    assert all(bool(up.any()) for up in ups)
    assert all(row["grad_norm"] > 1e-3 for row in rows(trained / "one" / name))  # not saturated


def test_the_first_step_is_what_equal_policies_give(trained):
    first = {name: rows(trained / "one" / name)[0] for name in RUNS}
    assert first["kto"]["loss"] == pytest.approx(0.5)  # sigmoid(0)
    assert first["bco"]["loss"] == pytest.approx(1 + math.log(2), rel=1e-6)  # 1 - log sigmoid(0)
    assert first["kto"]["gain"] == first["bco"]["gain"] == 0
    assert first["awm"]["ratio"] == 1
    assert first["nft"]["velocity_distance"] == 0
    assert first["nft"]["positive"] == pytest.approx(first["nft"]["negative"])


def test_the_old_policy_follows(trained):
    later = rows(trained / "one" / "awm")[-1]
    assert later["ratio"] != 1
    assert later["velocity_distance"] > 0
