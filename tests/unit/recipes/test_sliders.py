"""From a file of contrasts to calibrated adapters with cards, on a random tiny model."""

import json
from dataclasses import replace

import pytest
import torch

from diffdpo.config import build_config
from diffdpo.errors import CheckpointError, ConfigError, DataError
from diffdpo.models.adapters import read_adapter
from diffdpo.recipes import calibrate, sliders, train
from diffdpo.recipes.calibrate import CalibrateRun, calibration_text
from diffdpo.recipes.export_adapter import AdapterExport, export_adapter
from diffdpo.recipes.sliders import SlidersRun
from diffdpo.recipes.train import TrainRun
from diffdpo.training.config import result_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory, bundle):
    folder = tmp_path_factory.mktemp("sliders")
    row = {"plus": "{neutral}, bright", "minus": "{neutral}, dark", "neutral": ["rock", "piano"]}
    rows = [{"name": "bright", **row}, {"name": "fast", **row, "plus": "{neutral}, fast"}]
    (folder / "s.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    prompts = [{"id": f"p{i}", "text": text, "duration_s": 2} for i, text in enumerate(("metal", "ambient"))]
    (folder / "p.jsonl").write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts))
    return folder, [
        f"train.model.args.bundle={bundle}", f"train.data.sliders={folder / 's.jsonl'}",
        "train.own_songs={per_prompt: 1, duration_s: 2, sampling: {steps: 1}}",
        "train.train={steps: 2, global_batch: 2, per_device: 2, trackers: [], lora: {rank: 2}}",
        f"calibrate.prompts={folder / 'p.jsonl'}", "calibrate.strengths=[-1, 1]",
        "calibrate.scorers=[rhythm]", "calibrate.sampling={steps: 1}", "axes={bright: [sound.punch]}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(words):
    folder, more = words
    cfg = build_config(SlidersRun, None, [f"out={folder / 'run'}", *more])
    return cfg, sliders.run(cfg)


def test_a_file_of_sliders_becomes_adapters_on_shared_songs(run):
    """Each is its own adapter, trained on songs that were sampled once."""
    _, out = run
    states = [read_adapter(result_folder(out / name))[0] for name in ("bright", "fast")]
    assert states[0].keys() == states[1].keys()
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(states[0][name].abs().max() > 0 for name in states[0] if "lora_B" in name)
    assert len(list((out / "songs" / "latents").glob("*"))) == 2
    assert not (out / "bright" / "songs").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sliders"] == ["bright", "fast"]
    assert len(manifest["calibration"]["bright"]) == 1


def test_the_same_command_again_does_nothing_and_no_other_slider_fits(run):
    cfg, out = run
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    sliders.run(cfg)
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    objective = replace(cfg.train.objective, args={"eta": 9.0})
    further = replace(cfg, train=replace(cfg.train, objective=objective))
    with pytest.raises(ConfigError, match=r"eta"):
        sliders.run(further)


def test_the_scale_is_on_the_card(run, tmp_path):
    _, out = run
    text = calibration_text(out / "bright-scale")
    assert "strength 1 changes sound.punch by" in text
    assert "| at -1 | at 1 |" in text
    assert "rhythm.pulse" in text
    adapter = result_folder(out / "bright")
    export_adapter(
        AdapterExport(source=adapter, target=tmp_path / "card", calibration=str(out / "bright-scale"))
    )
    card = (tmp_path / "card" / "README.md").read_text()
    assert "## Strength" in card
    assert text in card
    assert "aligned on preferences" not in card
    with pytest.raises(DataError, match="diffdpo calibrate"):
        calibration_text(out / "bright")


def test_train_samples_its_own_songs_and_resumes_on_them(words, tmp_path):
    folder, more = words
    own = [word.removeprefix("train.") for word in more if word.startswith("train.")]
    base = ["objective.name=slider", "data.slider=fast", *own]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.run(build_config(TrainRun, None, [f"out={whole}", *base, "train.steps=4"]))
    for steps in (2, 4):
        train.run(build_config(TrainRun, None, [f"out={parts}", *base, f"train.steps={steps}"]))
    states = [read_adapter(result_folder(out))[0] for out in (whole, parts)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "error", "shift", "cosine"} <= rows[-1].keys()
    (folder / "s.jsonl").write_text((folder / "s.jsonl").read_text().replace("fast", "quick"))
    with pytest.raises((DataError, ConfigError)):
        train.run(build_config(TrainRun, None, [f"out={parts}", *base, "train.steps=4"]))


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("strengths=[0, 1]", "other than 0"),
        ("axes=[rhythm.puls]", "rhythm.pulse"),
        ("per_prompt=0", "per_prompt"),
    ],
)
def test_a_wrong_calibration_is_refused(word, match):
    with pytest.raises(ConfigError, match=match):
        build_config(CalibrateRun, None, ["out=x", "adapter=y", "prompts=z", word]).check_parts()


def test_an_adapter_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such adapter"):
        calibrate.adapter_folder(tmp_path / "gone")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="not finished"):
        calibrate.adapter_folder(tmp_path / "run")
