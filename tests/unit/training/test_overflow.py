"""Overflow in fp16, with torch's own loss scaler on the CPU: overflowed steps change nothing but the scale."""

import json
import math

import pytest
import torch

from diffdpo.data.datasets.examples import DataConfig, build_examples
from diffdpo.data.datasets.generated import Source
from diffdpo.errors import UserError
from diffdpo.models import MODELS
from diffdpo.models.checkpoints import load_saved
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.objectives import OBJECTIVES
from diffdpo.training.config import ReferenceConfig, TrainConfig
from diffdpo.training.overflow import MAX_OVERFLOWS, count_overflows
from diffdpo.training.references import MovingCopy
from diffdpo.training.session import optimize
from diffdpo.training.strategy import build_accelerator

pytestmark = pytest.mark.slow

HUGE = 2.0**120
"""A loss scale under which any gradient of fp16 overflows; halved a few times it still is."""


def train(bundle, pairs, out, scale, *, steps, beta=10.0, **settings):
    """A run in fp16 as far as a CPU can, with torch's scaler and autocast in accelerate; the rows of metrics."""
    settings = {"reference": ReferenceConfig(kind="ema", decay=0.5), "ema": 0.9, **settings}
    cfg = TrainConfig(
        steps=steps, global_batch=4, per_device=4, trackers=[], learning_rate=1e-4, time_bins=0, **settings
    )
    accelerator = build_accelerator(cfg, str(out))
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    accelerator.autocast = lambda *args, **kwargs: torch.autocast("cpu", dtype=torch.float16)
    model = MODELS["tiny"](bundle=str(bundle)).load()
    store = EmbeddingStore(model)
    source = Source(
        embed=store.embed,
        embed_plan=store.embed_plan,
        frames_per_second=model.spec.frames_per_second,
        channels=model.spec.channels,
        seed=0,
        report=print,
    )
    examples = build_examples(DataConfig(pairs=str(pairs)), "pair", "dpo", source)
    optimize(model, examples, OBJECTIVES["dpo"](beta=beta), cfg, out=out, accelerator=accelerator)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def moved(bundle, export):
    """Whether exported weights differ from those that the run began with."""
    states = (
        load_saved(DiffRhythmTransformer, folder).state_dict() for folder in (bundle / "network", export)
    )
    before, after = states
    return any(not torch.equal(before[name], after[name]) for name in before)


def test_a_run_goes_on_behind_its_first_overflows(bundle, pairs, tmp_path, capsys):
    scale = 2.0**26
    rows = train(bundle, pairs, tmp_path / "run", scale, steps=14)
    assert rows[0]["skipped"] == 1.0
    assert rows[-1]["skipped"] == 0.0
    for row in rows:
        scale /= 2 if row["skipped"] else 1
        assert row["loss_scale"] == scale
        assert ("grad_norm" in row) == (not row["skipped"])
        assert all(math.isfinite(value) for value in row.values())
    told = capsys.readouterr().err.count("the step is skipped; the loss scale is now")
    assert told == sum(row["skipped"] for row in rows)
    assert moved(bundle, tmp_path / "run" / "checkpoints" / "step-00000014" / "export")


def test_averages_and_references_do_not_follow_a_skipped_step(bundle, pairs, tmp_path, monkeypatch):
    """Every step overflows: the policy is what it was, no copy was told to follow, the average counts no step."""
    calls = []
    monkeypatch.setattr(MovingCopy, "follow", lambda copy, network, step: calls.append(step))
    out = tmp_path / "run"
    rows = train(bundle, pairs, out, HUGE, steps=3)
    assert [row["skipped"] for row in rows] == [1.0] * 3
    assert calls == []
    assert not moved(bundle, out / "checkpoints" / "step-00000003" / "export")
    state = out / "checkpoints" / "step-00000003" / "state"
    steps = [
        content["optimization_step"]
        for path in state.glob("custom_checkpoint_*.pkl")
        if "optimization_step" in (content := torch.load(path, weights_only=True))
    ]
    assert steps == [0]


def test_overflow_that_does_not_end_stops_the_run_in_one_line(bundle, pairs, tmp_path):
    with pytest.raises(
        UserError, match=rf"step {MAX_OVERFLOWS}: gradients overflowed in fp16 {MAX_OVERFLOWS} times"
    ):
        train(bundle, pairs, tmp_path / "run", HUGE, steps=MAX_OVERFLOWS + 5)


def test_a_loss_that_is_not_a_number_stops_the_run_though_its_step_is_skipped(bundle, pairs, tmp_path):
    """With beta = 1e39, infinite in single precision, a margin of zero gives 0 times infinity."""
    with pytest.raises(UserError, match=r"step 1: loss.* not finite"):
        train(bundle, pairs, tmp_path / "run", 1024.0, steps=2, beta=1e39)


@pytest.mark.parametrize(
    ("row", "count", "expected"),
    [
        ({"step": 7, "skipped": 1.0, "loss_scale": 32768.0}, 0, 1),
        ({"step": 7, "skipped": 1.0, "loss_scale": 2.0}, MAX_OVERFLOWS - 2, MAX_OVERFLOWS - 1),
        ({"step": 7, "skipped": 0.0, "loss_scale": 2.0}, MAX_OVERFLOWS - 1, 0),
        ({"step": 7, "loss": 0.5}, 0, 0),
    ],
)
def test_overflows_in_a_row_are_counted(row, count, expected):
    assert count_overflows(row, count) == expected


@pytest.mark.parametrize(("scale", "count"), [(0.5, 0), (2.0, MAX_OVERFLOWS - 1)])
def test_a_scale_below_one_or_too_many_in_a_row_end_it(scale, count):
    row = {"step": 9, "skipped": 1.0, "loss_scale": scale}
    with pytest.raises(UserError, match=r"step 9: gradients overflowed .*precision=bf16 or no"):
        count_overflows(row, count)
