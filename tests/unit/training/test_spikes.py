"""The guard against spikes: the rule in closed form, and a run whose broken step changes nothing."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from support.rows import embedding

from diffdpo.data.datasets.memory import PairsInMemory
from diffdpo.errors import UserError
from diffdpo.mining.values import Pair
from diffdpo.models import MODELS
from diffdpo.models.adapters import read_adapter
from diffdpo.objectives import OBJECTIVES
from diffdpo.objectives.terms.restraints import Anchor
from diffdpo.training.config import LoraConfig, SpikeConfig, TrainConfig, export_folder
from diffdpo.training.session import optimize
from diffdpo.training.spikes import (
    SpikeHistory,
    check_spikes,
    extend_history,
    find_spike,
    spike_limit,
)
from diffdpo.training.throughput import TIMINGS
from diffdpo.types import Row

pytestmark = pytest.mark.slow

CFG = SpikeConfig(window=4, threshold=3.0, max_in_row=1)
LENGTH = 12


def test_the_limit_is_the_median_and_so_many_deviations():
    assert spike_limit((1.0, 2.0, 3.0, 10.0), CFG) == pytest.approx(
        2.5 + 3 * 1.4826 * 1.0
    )  # |x - 2.5|: median 1
    assert spike_limit((2.0, 2.0, 2.0), CFG) == pytest.approx(
        2.0 + 3 * 0.05 * 2.0
    )  # a spread of 5 % at least
    assert spike_limit((2.0,), CFG) == math.inf
    assert spike_limit((-4.0, -4.0, -4.0), CFG) == pytest.approx(-4.0 + 3 * 0.05 * 4.0)


def test_what_is_not_finite_is_a_spike_from_the_first_step_but_not_the_overflow_of_fp16():
    history = SpikeHistory()
    assert "loss is nan" in find_spike(history, CFG, loss=math.nan, grad_norm=1.0)
    assert "grad_norm is inf" in find_spike(history, CFG, loss=1.0, grad_norm=math.inf)
    assert find_spike(history, CFG, loss=1.0, grad_norm=math.inf, is_fp16=True) == ""
    assert find_spike(history, CFG, loss=1e9, grad_norm=1e9) == ""  # nothing to compare with


def test_a_spike_enters_no_history_and_too_many_in_a_row_end_the_run(tmp_path):
    history = SpikeHistory()
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        history = extend_history(history, CFG, {"loss": value, "grad_norm": 2 * value})
    assert history.loss == (2.0, 3.0, 4.0, 5.0)
    assert history.grad_norm == (4.0, 6.0, 8.0, 10.0)
    history = extend_history(history, CFG, {"loss": 1e6, "grad_norm": 1.0, "spike": 1.0})
    assert (history.loss, history.run) == ((2.0, 3.0, 4.0, 5.0), 1)
    check_spikes(history, CFG, 7, tmp_path / "step-00000002")
    history = extend_history(history, CFG, {"spike": 1.0})
    with pytest.raises(
        UserError, match=r"step 8: 2 spikes in a row; the last good checkpoint is .*step-00000002"
    ):
        check_spikes(history, CFG, 8, tmp_path / "step-00000002")
    assert SpikeHistory.restore(json.loads(json.dumps(vars(history)))) == history


@dataclass(frozen=True, eq=False)
class Broken:
    """Pairs of which some positions of the stream are a thousand times too loud, or no numbers."""

    pairs: PairsInMemory
    positions: tuple[int, ...]
    factor: float

    def __len__(self):
        return len(self.pairs)

    def example(self, index, position):
        example = self.pairs.example(index, position)
        if position not in self.positions:
            return example
        return replace(example, winner=example.winner * self.factor)

    def collate(self, examples, positions):
        return self.pairs.collate(examples, positions)


def examples(positions=(), factor=1000.0):
    generator = torch.Generator().manual_seed(0)
    songs = [f"s{i}" for i in range(16)]
    pairs = [
        Pair(
            prompt_id=f"p{i}",
            group=f"p{i}",
            winner=songs[2 * i],
            loser=songs[2 * i + 1],
            rule="test",
            margins={},
        )
        for i in range(8)
    ]
    row = Row(embedding=embedding(torch.nn.functional.normalize(torch.ones(16), dim=0)), frames=LENGTH)
    latents = {song: torch.randn(LENGTH, 8, generator=generator) for song in songs}
    return Broken(PairsInMemory(pairs, latents, dict.fromkeys(songs, row), 21.5), positions, factor)


def train(bundle, out, data, *, steps=8, **settings):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    spike = SpikeConfig(window=8, threshold=10.0, max_in_row=2)
    defaults = {
        "global_batch": 2, "per_device": 1, "learning_rate": 1e-3, "save_every": 2, "keep_checkpoints": 9,
        "lora": LoraConfig(rank=2), "spike": spike, "trackers": [], "time_bins": 0, "ema": 0.5,
    }  # fmt: skip
    optimize(
        model,
        data,
        OBJECTIVES["dpo"](beta=1.0, anchor=Anchor(winner=1.0)),
        TrainConfig(steps=steps, **{**defaults, **settings}),
        out=out,
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def adapter(out, step):
    return read_adapter(export_folder(out, step))[0]


@pytest.mark.parametrize("factor", [1000.0, math.nan])
def test_a_broken_step_is_skipped_on_one_of_several_micro_batches(bundle, tmp_path, factor, capsys):
    """Step 6 is broken, in the second of its two micro-batches."""
    out = tmp_path / "run"
    rows = train(bundle, out, examples((11,), factor), steps=7, save_every=1)
    assert [row["spike"] for row in rows] == [0.0] * 5 + [1.0, 0.0]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert "step 6: " in capsys.readouterr().err
    five, six, seven = (adapter(out, step) for step in (5, 6, 7))
    assert all(torch.equal(five[name], six[name]) for name in five)  # average and weights stand still
    assert not all(torch.equal(six[name], seven[name]) for name in six)


def test_the_history_is_in_the_checkpoint(bundle, tmp_path):
    data = examples((11,))
    whole = train(bundle, tmp_path / "whole", data, steps=6, save_every=4)
    train(bundle, tmp_path / "cut", data, steps=4, save_every=4)
    assert train(bundle, tmp_path / "cut", data, steps=6, save_every=4) == whole
    assert whole[5]["spike"] == 1.0


def test_spikes_without_end_are_one_line(bundle, tmp_path):
    with pytest.raises(
        UserError, match=r"step 8: 3 spikes in a row; the last good checkpoint is .*step-00000006"
    ):
        train(bundle, tmp_path / "run", examples(tuple(range(10, 40))))
