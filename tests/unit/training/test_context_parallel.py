"""What a training that divides its songs over processes refuses, and which data each process has."""

import pytest
import torch

from diffdpo.errors import ConfigError, UserError
from diffdpo.models import MODELS
from diffdpo.models.frame_shards import (
    current_shards,
    divided_frames,
    frame_positions,
    join_frames,
    own_frames,
    padded_length,
    share_frames,
    share_heads,
    song_norm,
    trim_frames,
    widen_frames,
)
from diffdpo.objectives.dpo import DPO
from diffdpo.training.config import LoraConfig, TrainConfig, data_world
from diffdpo.training.context_parallel import check_context, data_place
from diffdpo.training.strategy import STRATEGIES, check_strategy


def test_processes_that_share_a_song_have_the_same_data():
    cfg = TrainConfig(context_parallel=2)
    assert data_world(cfg, 4) == 2
    assert [data_place(cfg, rank, 4) for rank in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [data_place(TrainConfig(), rank, 2) for rank in range(2)] == [(0, 2), (1, 2)]


def test_processes_that_are_left_over_are_refused():
    with pytest.raises(UserError, match=r"needs a multiple of 2 processes, this run has 3"):
        data_world(TrainConfig(context_parallel=2), 3)
    with pytest.raises(UserError, match=r"this run has 1; launch as many"):
        data_world(TrainConfig(context_parallel=2), 1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"compile": True}, "not with train.compile"),
        ({"lora": LoraConfig(peft={"lora_dropout": 0.1})}, "lora_dropout draws"),
    ],
)
def test_what_does_not_go_together_is_refused(bundle, changes, problem):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    check_context(TrainConfig(context_parallel=2), model)
    check_context(TrainConfig(**changes), model)
    with pytest.raises(UserError, match=problem):
        check_context(TrainConfig(context_parallel=2, **changes), model)


@pytest.mark.parametrize(("name", "backend"), [("zero2", "DeepSpeed"), ("fsdp2", "FSDP2")])
def test_backends_that_shard_do_not_divide_songs(name, backend):
    check_strategy(TrainConfig(context_parallel=2), STRATEGIES["ddp"], DPO())
    with pytest.raises(ConfigError, match=f"train.context_parallel=2: not under {backend}"):
        check_strategy(TrainConfig(context_parallel=2), STRATEGIES[name], DPO())


def test_without_processes_that_share_songs_every_function_is_the_identity():
    values = torch.randn(2, 7, 3)
    heads = torch.randn(2, 3, 7, 4)
    with divided_frames(None):
        assert current_shards() is None
        assert padded_length(7) == 7
        assert own_frames(values) is values
        assert join_frames(values, 7) is values
        assert widen_frames(values, 15, 1) is values
        assert trim_frames(values, 15, 1) is values
        assert share_heads(heads) is heads
        assert share_frames(heads, 3) is heads
        assert frame_positions(7, values.device).tolist() == list(range(7))
        assert torch.equal(song_norm(values), values.norm(p=2, dim=1, keepdim=True))
