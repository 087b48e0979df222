"""The rules of each backend, and which one a launcher asks for."""

import pytest

from diffdpo.errors import ConfigError
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.nft import NFT
from diffdpo.training.config import LoraConfig, ReferenceConfig, SpikeConfig, TrainConfig
from diffdpo.training.layout import Layout, can_load
from diffdpo.training.sharding import Deployment
from diffdpo.training.strategy import STRATEGIES, check_strategy, launcher_strategy, refusals

SHARDED = ("zero3", "fsdp2")
REFUSALS = [
    (TrainConfig(optimizer="adamw_8bit"), "train.optimizer=adamw_8bit", ("zero1", "zero2", "zero3", "fsdp2")),
    (TrainConfig(base="int8", lora=LoraConfig()), "train.base=int8", ("zero1", "zero2", "zero3", "fsdp2")),
    (TrainConfig(spike=SpikeConfig()), "train.spike", ("zero1", "zero2", "zero3")),
    (TrainConfig(precision="fp16"), "train.precision=fp16", ("fsdp2",)),
    (TrainConfig(ema=0.9), "train.ema", SHARDED),
    (TrainConfig(reference=ReferenceConfig("ema")), "train.reference.kind=ema", SHARDED),
    (TrainConfig(reference=ReferenceConfig(cached_draws=2)), "train.reference.cached_draws", SHARDED),
    (
        TrainConfig(reference=ReferenceConfig("frozen_copy", offload=True)),
        "train.reference.offload",
        ("fsdp2",),
    ),
    (TrainConfig(old=ReferenceConfig("synced")), "", ()),  # DPO has no old policy
]


@pytest.mark.parametrize(("cfg", "key", "names"), REFUSALS)
def test_each_backend_refuses_what_it_cannot_do_and_nothing_else(cfg, key, names):
    for name, strategy in STRATEGIES.items():
        messages = list(refusals(cfg, strategy, DPO()))
        assert [message.split(": ")[0] for message in messages] == ([key] if name in names else [])
        if name in names:
            with pytest.raises(ConfigError, match=key):
                check_strategy(cfg, strategy, DPO())


def test_an_old_policy_that_follows_is_refused_for_objectives_that_have_one():
    cfg = TrainConfig(old=ReferenceConfig("synced"))
    assert [m.split(": ")[0] for m in refusals(cfg, STRATEGIES["fsdp2"], NFT())] == ["train.old.kind=synced"]


@pytest.mark.parametrize(
    ("environment", "key", "title"),
    [
        ({}, "auto", "one process"),
        ({}, "fsdp2", "one process"),
        ({"WORLD_SIZE": "2"}, "auto", "DDP"),
        ({"WORLD_SIZE": "2"}, "fsdp2", "FSDP2"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "auto", "FSDP2"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "ddp", "DDP"),
    ],
)
def test_the_launcher_or_the_key_chooses_the_backend(monkeypatch, environment, key, title):
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP", "FSDP_VERSION", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launcher_strategy(TrainConfig(strategy=key)).title == title


@pytest.mark.parametrize(
    ("environment", "key", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "fsdp2", "train.strategy=fsdp2: the launcher asks for DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "auto", "FSDP 1 is not supported"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "auto", "set train.gradient_checkpointing instead",
        ),
    ],
)  # fmt: skip
def test_a_launcher_that_asks_for_something_else_is_refused(monkeypatch, environment, key, message):
    for name, value in {"WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        launcher_strategy(TrainConfig(strategy=key))


def layout(distributed, world, stage=0):
    return Layout(world=world, distributed=distributed, zero_stage=stage)


@pytest.mark.parametrize(
    ("writer", "reader", "expected"),
    [
        (layout("FSDP2", 2), layout("FSDP2", 4), True),
        (layout("FSDP2", 2), layout("NO", 1), False),
        (layout("NO", 1), layout("FSDP2", 2), False),
        (layout("NO", 1), layout("MULTI_GPU", 8), True),
        (layout("DEEPSPEED", 2, 2), layout("DEEPSPEED", 2, 2), True),
        (layout("DEEPSPEED", 2, 2), layout("DEEPSPEED", 4, 2), False),
        (layout("DEEPSPEED", 2, 1), layout("DEEPSPEED", 2, 2), False),
    ],
)
def test_whose_checkpoints_a_run_can_load(writer, reader, expected):
    assert can_load(reader, writer) == expected


def test_what_waits_for_the_others_needs_equal_passes():
    assert {name for name, s in STRATEGIES.items() if s.needs_equal_passes} == {"zero1", "zero2", *SHARDED}
    assert {name for name, s in STRATEGIES.items() if s.shards_weights} == set(SHARDED)


def test_a_deployment_is_one_backend():
    assert Deployment(4, 2).strategy is STRATEGIES["zero2"]
    assert Deployment(4, fsdp2=True).strategy is STRATEGIES["fsdp2"]
    with pytest.raises(ValueError, match="exclude each other"):
        Deployment(4, 2, fsdp2=True)
    with pytest.raises(ValueError, match="offload to the CPU"):
        Deployment(4, 1, offload=True)
