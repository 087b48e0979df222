"""The backends of training and all their rules: what each shards over processes, and what it refuses.

Plain processes, DistributedDataParallel, DeepSpeed's ZeRO in three stages, and torch's `fully_shard` (FSDP2), which
runs over gloo on CPUs as over NCCL on GPUs. accelerate launches all of them; FSDP2 is applied here and not by
accelerate, so that one path serves CPUs and GPUs.

Gradients are means over processes and micro-batches under every backend. DDP reduces them with the last
micro-batch; ZeRO-2, ZeRO-3 and FSDP2 after each, so that no process ever holds all of them. The norm that clips
them is that of the whole gradient.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from diffdpo.data.datasets.stream import accumulation
from diffdpo.devices import choose_device, is_cpu_forced
from diffdpo.errors import ConfigError, reason
from diffdpo.training.config import TrainConfig, data_world
from diffdpo.training.references import FrozenCopy
from diffdpo.training.trackers import check_trackers
from diffdpo.types import Objective

USE_FSDP = "ACCELERATE_USE_FSDP"
"""The environment variable in which `accelerate launch` says that its configuration is one of FSDP."""
STRATEGY_ATTRIBUTE = "diffdpo_strategy"
"""The attribute of an accelerator that holds its strategy."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A backend: how the processes of a run share weights, gradients and the optimiser's state."""

    title: str
    shards: frozenset[str] = frozenset()
    """Which of optimizer, gradients and weights each process has a part of only."""
    zero_stage: int = 0
    is_portable: bool = False
    """Whether any number of plain processes can load its checkpoints."""

    @property
    def is_deepspeed(self) -> bool:
        return self.zero_stage > 0

    @property
    def is_fsdp(self) -> bool:
        return self.title == "FSDP2"

    @property
    def shards_weights(self) -> bool:
        """Whether every pass through the network is one of all processes together, which gather its weights."""
        return "weights" in self.shards

    @property
    def needs_equal_passes(self) -> bool:
        """Whether all processes must go equally often through the network: each pass, or each backward pass, waits
        for those of the others."""
        return bool(self.shards)


STRATEGIES = {
    "single": Strategy(title="one process", is_portable=True),
    "ddp": Strategy(title="DDP", is_portable=True),
    "zero1": Strategy(title="ZeRO-1", shards=frozenset({"optimizer"}), zero_stage=1),
    "zero2": Strategy(title="ZeRO-2", shards=frozenset({"optimizer", "gradients"}), zero_stage=2),
    "zero3": Strategy(title="ZeRO-3", shards=frozenset({"optimizer", "gradients", "weights"}), zero_stage=3),
    "fsdp2": Strategy(title="FSDP2", shards=frozenset({"optimizer", "gradients", "weights"})),
}


def check_strategy(cfg: TrainConfig, strategy: Strategy, objective: Objective) -> None:
    """ConfigError for the first thing in a configuration that a backend cannot do."""
    for refusal in refusals(cfg, strategy, objective):
        raise ConfigError(refusal)


def refusals(cfg: TrainConfig, strategy: Strategy, objective: Objective) -> Iterator[str]:
    """Everything in a configuration that a backend cannot do, with the reason and the way out."""
    backend = "DeepSpeed" if strategy.is_deepspeed else strategy.title
    if strategy.shards and cfg.optimizer == "adamw_8bit":
        kind = "as flat fp32 tensors" if strategy.is_deepspeed else "by rows"
        yield (
            f"train.optimizer=adamw_8bit: {backend} shards moments {kind}, not in blocks of 8 bits; launch without "
            "it, or use adamw"
        )
    if strategy.shards and cfg.base != "full":
        yield f"train.base={cfg.base}: {backend} cannot hold such weights; launch without it, or use base=full"
    if strategy.shards and cfg.weights != "fp32":
        kind = (
            "keeps fp32 copies of its own" if strategy.is_deepspeed else "shards weights and moments in fp32"
        )
        yield f"train.weights={cfg.weights}: {backend} {kind}; leave it out"
    if strategy.shards and cfg.context_parallel > 1:
        yield (
            f"train.context_parallel={cfg.context_parallel}: not under {backend}; launch plain processes, or leave "
            "it out"
        )
    if strategy.is_deepspeed and cfg.spike is not None:
        yield "train.spike: DeepSpeed updates within its backward pass, where no step can be skipped; leave it out"
    if strategy.is_fsdp and cfg.precision == "fp16":
        yield "train.precision=fp16: FSDP2 has no loss scaler here; use bf16"
    if strategy.shards_weights:
        yield from _weight_refusals(cfg, strategy, objective)


def _weight_refusals(cfg: TrainConfig, strategy: Strategy, objective: Objective) -> Iterator[str]:
    """What sharded weights exclude."""
    title = strategy.title
    if cfg.ema:
        yield f"train.ema: {title} shards the parameters it would average; use ZeRO-2, or train.ema=0"
    for name, policy in (("reference", cfg.reference), ("old", cfg.old)):
        if name not in objective.needs:
            continue
        if policy.kind in ("ema", "synced"):
            yield (
                f"train.{name}.kind={policy.kind}: {title} shards the weights it would follow; use ZeRO-2, or "
                "adapter_off"
            )
        if policy.cached_draws:
            yield (
                f"train.{name}.cached_draws: under {title} all processes pass through the network together, and "
                "each remembers other errors; set it to 0, or use ZeRO-2"
            )
        if policy.offload and strategy.is_fsdp:
            yield f"train.{name}.offload: FSDP2 shards the frozen copy already; leave it out"


def launcher_strategy(cfg: TrainConfig) -> Strategy:
    """The backend that the launcher's environment and `train.strategy` ask for.

    ConfigError for two backends at once, for FSDP of the first version, and for what FSDP2 has a key of ours for.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    is_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    is_fsdp = os.environ.get(USE_FSDP, "false").lower() == "true"
    if is_deepspeed:
        if cfg.strategy != "auto":
            raise ConfigError(f"train.strategy={cfg.strategy}: the launcher asks for DeepSpeed; use auto")
        return STRATEGIES["zero2"]  # the stage is known once accelerate has read DeepSpeed's file
    if world == 1:
        return STRATEGIES["single"]
    if cfg.strategy == "ddp" or not (is_fsdp or cfg.strategy == "fsdp2"):
        return STRATEGIES["ddp"]
    if is_fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "accelerate's configuration: FSDP 1 is not supported; set fsdp_config.fsdp_version: 2"
        )
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise ConfigError(
            "accelerate's configuration: fsdp_activation_checkpointing; set train.gradient_checkpointing instead"
        )
    return STRATEGIES["fsdp2"]


def build_accelerator(cfg: TrainConfig, logging_dir: str) -> Accelerator:
    """The accelerator of the environment that `accelerate launch` or `torchrun` made, or of one process."""
    cpu = choose_device().type == "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if cfg.precision == "fp16" and cpu:
        raise ConfigError("train.precision=fp16 needs a GPU; use bf16 or no")
    check_trackers(cfg.trackers)
    strategy = launcher_strategy(cfg)
    rounds = accumulation(cfg.global_batch, cfg.per_device, data_world(cfg, world))
    AcceleratorState._reset_state()  # a process may train more than once, each time with another precision
    with _without_fsdp_of_accelerate():
        accelerator = Accelerator(
            cpu=is_cpu_forced() or (cpu and world > 1 and not strategy.is_deepspeed),  # it excludes DeepSpeed
            mixed_precision=cfg.precision,
            gradient_accumulation_steps=rounds,
            kwargs_handlers=_process_group(strategy, cpu) if world > 1 else [],
            log_with=list(cfg.trackers) or None,
            project_dir=logging_dir,
        )
    assert accelerator.num_processes == world, "accelerate sees another number of processes than was launched"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = cfg.per_device
        settings["gradient_accumulation_steps"] = rounds
        settings["train_batch_size"] = cfg.global_batch
        settings["gradient_clipping"] = cfg.grad_clip
        # under ZeRO-3 transformers would shard every model that it loads from now on: text encoders and judges
        import_module("transformers.integrations.deepspeed").unset_hf_deepspeed_config()
    else:
        setattr(accelerator, STRATEGY_ATTRIBUTE, strategy)
    return accelerator


def _process_group(strategy: Strategy, cpu: bool) -> list[Any]:
    """Over what the processes talk: gloo on CPUs, and beside NCCL where FSDP2 keeps weights on the CPU."""
    if cpu:
        return [InitProcessGroupKwargs(backend="gloo")]
    return [InitProcessGroupKwargs(backend="cuda:nccl,cpu:gloo")] if strategy.is_fsdp and _offloads() else []


def _offloads() -> bool:
    return os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"


@contextmanager
def _without_fsdp_of_accelerate() -> Iterator[None]:
    """accelerate sees plain processes: its own FSDP2 works on GPUs only. Each process loads its encoders, which
    transformers would load on the first alone where it sees FSDP."""
    value = os.environ.pop(USE_FSDP, None)
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    try:
        yield
    finally:
        if value is not None:
            os.environ[USE_FSDP] = value


def strategy_of(accelerator: Accelerator) -> Strategy:
    """The backend of an accelerator, ours or one that a caller of the Python interface made."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return STRATEGIES[f"zero{accelerator.state.deepspeed_plugin.zero_stage}"]
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ConfigError(
            "an accelerator with its own FSDP plugin cannot train here; set train.strategy=fsdp2"
        )
    default = STRATEGIES["single" if accelerator.num_processes == 1 else "ddp"]
    strategy: Strategy = getattr(accelerator, STRATEGY_ATTRIBUTE, default)
    return strategy


def distributed_name(accelerator: Accelerator) -> str:
    """The kind of distribution in manifests: FSDP2, or accelerate's name (NO, MULTI_CPU, MULTI_GPU, DEEPSPEED)."""
    strategy = strategy_of(accelerator)
    return strategy.title if strategy.is_fsdp else str(accelerator.distributed_type.value)


def zero_stage(accelerator: Accelerator) -> int:
    """0 without DeepSpeed."""
    return strategy_of(accelerator).zero_stage


def shard_network(network: Any, accelerator: Accelerator) -> None:
    """Shard the parameters of a network over all processes, in place (FSDP2): each becomes a DTensor.

    Each block that the network repeats is a unit, gathered for its own passes, and the rest is one. Frozen and
    trained parameters may lie in one unit. ConfigError for a network without such blocks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    names = getattr(network, "_repeated_blocks", None) or ()
    blocks = [module for module in network.modules() if type(module).__name__ in names]
    if not blocks:
        raise ConfigError(f"FSDP2: {type(network).__name__} names no _repeated_blocks; use ZeRO-3")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    offload = CPUOffloadPolicy() if _offloads() and accelerator.device.type != "cpu" else OffloadPolicy()
    keeps = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "false"
    warnings.filterwarnings(
        "ignore", message="FSDP2-wrapped module"
    )  # the answer is a view; nobody writes into it
    for module in (*blocks, network):
        name = type(module).__name__
        try:
            fully_shard(module, mesh=mesh, reshard_after_forward=not keeps, offload_policy=offload)
        except ValueError as error:
            raise ConfigError(f"FSDP2: {name} cannot be sharded ({reason(error)}); use ZeRO-3") from None
        type(module).__name__ = name  # what looks for a kind of block, or writes its name to disk, finds it


def prepare_sharded(network: Any, optimizer: Any, accelerator: Accelerator) -> tuple[Any, Any]:
    """Network and optimiser under FSDP2, as `accelerator.prepare` gives them elsewhere.

    The optimiser, which must not have made a step, goes on with the sharded parameters.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    network = accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)
    shard_network(network, accelerator)
    parameters = dict(network.named_parameters())
    for group, members in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [parameters[name] for name in members]
    optimizer = accelerator.prepare_optimizer(optimizer, device_placement=False)
    accelerator._optimizers.remove(optimizer)  # its state is saved by names, see `sharded_state`
    return network, optimizer


def shard_frozen_copies(policies: Sequence[Any], accelerator: Accelerator) -> None:
    """Shard the networks of frozen copies, each once."""
    for network in {id(p.network): p.network for p in policies if isinstance(p, FrozenCopy)}.values():
        shard_network(network, accelerator)


def clip_gradients(accelerator: Accelerator, policy: Any, limit: float) -> Any:
    """Scale the gradients of a step down to a norm; the norm of the whole gradient before."""
    norm: Any = accelerator.clip_grad_norm_(policy.parameters(), limit)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def full_weights(accelerator: Accelerator, policy: Any, *, trained: bool) -> dict[str, torch.Tensor]:
    """The weights of a network, gathered from all processes. Under FSDP2 `trained` leaves out the frozen ones.
    Under FSDP2 and ZeRO-3 the first process alone has them: the others have {}."""
    if not strategy_of(accelerator).is_fsdp:
        return dict(accelerator.get_state_dict(policy) or {})  # ZeRO-3: None but on the first
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained)
    state: Any = get_model_state_dict(policy, options=options)
    return dict(state)
