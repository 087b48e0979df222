"""Run directories and processes of a verb: open a directory, check its inputs, split work over processes."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffdpo import presets
from diffdpo.config import to_yaml
from diffdpo.data.samples import PROMPTS
from diffdpo.devices import choose_device
from diffdpo.errors import ConfigError, DataError
from diffdpo.inputs import INPUTS, changed_inputs, read_inputs, write_inputs
from diffdpo.locks import LOCK, lock_folder, lock_shard
from diffdpo.registry import Choice
from diffdpo.runs import CONFIG, write_if_changed
from diffdpo.text_files import read_text

T = TypeVar("T")


@dataclass(frozen=True)
class DistEnv:
    """The processes that share a verb's work: one, or those `accelerate launch` started."""

    rank: int
    count: int
    barrier: Callable[[], None]

    @property
    def main(self) -> bool:
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[T]:
        """The items of this process: every `count`-th, beginning with number `rank`."""
        return list(items[self.rank :: self.count])


def dist_env() -> DistEnv:
    """The processes of this run: one, or those that `accelerate launch` started."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return DistEnv(0, 1, lambda: None)
    from accelerate import PartialState

    state = PartialState(cpu=choose_device().type == "cpu")
    return DistEnv(state.process_index, state.num_processes, state.wait_for_everyone)


def check_alone_on(executor: Choice, dist: DistEnv) -> None:
    """ConfigError where several processes share a verb's work and an executor would share it out again."""
    if dist.count > 1 and executor.name != "local":
        raise ConfigError(
            f"executor={executor.name} shares the work itself; start one process, not {dist.count} by a launcher"
        )


def shutdown() -> None:
    """Leave the group of processes at the end of a command, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device() -> torch.device:
    """The device of this process; see `choose_device`."""
    return choose_device()


@contextmanager
def open_folder(out: Path, dist: DistEnv, inputs: Mapping[str, str] | None = None) -> Iterator[None]:
    """Hold a folder alone, whatever the configuration of earlier runs in it. DataError if it holds results of other
    `inputs`."""
    with ExitStack() as stack:
        if dist.main:
            stack.enter_context(lock_folder(out))
            _check_inputs(out, inputs or {})
        dist.barrier()
        yield


@contextmanager
def open_run(
    cfg: Any,
    *,
    free: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    dist: DistEnv | None = None,
    shard: tuple[int, int] = (0, 1),
    refresh: Callable[[Path], None] | None = None,
) -> Iterator[Path]:
    """The run directory `cfg.out`, held by this run alone, or by this shard (number, count) beside others.

    ConfigError with the first key that differs if the directory holds results of another configuration; the keys in
    `free` may differ. DataError if it holds results of other `inputs`, which are digests by name. `refresh` is
    called when both are right, to drop results of inputs that changed.
    """
    out = Path(cfg.out)
    with ExitStack() as stack:
        if dist is None or dist.main:
            lock = lock_shard(out, *shard) if shard[1] > 1 else lock_folder(out)
            entry = stack.enter_context(lock)
            _check_earlier_run(cfg, out, free, inputs or {})
            if refresh is not None:
                refresh(out)
            entry.close()
        if dist is not None:
            dist.barrier()
        yield out


def _check_earlier_run(cfg: Any, out: Path, free: Sequence[str], inputs: Mapping[str, str]) -> None:
    """Compare configuration and inputs with those of the results in a folder, if any; then write them there."""
    path, text = out / CONFIG, to_yaml(cfg)
    if path.is_file() and any(not _is_opening_file(entry.name) for entry in out.iterdir()):
        old, new = (_flat(_plain_tree(tree)) for tree in (_read_config(path), OmegaConf.create(text)))
        _check_same({**_defaults(cfg, old), **old}, new, out, free)
    write_if_changed(path, text)
    _check_inputs(out, inputs)


def _read_config(path: Path) -> DictConfig:
    """The configuration of an earlier run; DataError for a file that is no longer one."""
    try:
        cfg = OmegaConf.create(read_text(path))
    except (YAMLError, OmegaConfBaseException) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{path}: not the configuration of a run ({line}); choose another out=…") from None
    if not isinstance(cfg, DictConfig):
        raise DataError(f"{path}: not the configuration of a run; choose another out=…")
    return cfg


def _check_inputs(out: Path, inputs: Mapping[str, str]) -> None:
    """Compare inputs with those of the results in a folder, if any; then write them there."""
    if any(not _is_opening_file(entry.name) for entry in out.iterdir()):
        for name in changed_inputs(out, inputs):
            raise DataError(
                f"{out}: the {name} changed since this run began; choose another out=…, or delete the folder to "
                "start over"
            )
    if inputs:
        write_inputs(out, {**read_inputs(out), **inputs})


def _is_opening_file(name: str) -> bool:
    """Whether a file is there from the beginning of a run, before any result."""
    return name in (CONFIG, INPUTS, PROMPTS) or name.startswith(LOCK)


def _defaults(cfg: Any, old: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of keys that an earlier run does not have, since its version of the program did not know them:
    it did what the default does. Arguments of parts have none here."""
    values = _flat(_plain_tree(OmegaConf.structured(type(cfg))))
    return {key: value for key, value in values.items() if key not in old and ".args" not in key}


def _check_same(
    old_values: Mapping[str, Any], new_values: Mapping[str, Any], out: Path, free: Sequence[str]
) -> None:
    tops = [{key.partition(".")[0] for key in values} for values in (old_values, new_values)]
    if strange := sorted(tops[0] - tops[1]):
        raise ConfigError(
            f"{out}: was made by another verb or version, whose configuration has the key {strange[0]!r}; choose "
            "another out=…"
        )
    for key in sorted(old_values.keys() | new_values.keys()):
        if any(key == name or key.startswith(f"{name}.") for name in ("out", *free)):
            continue
        if old_values.get(key) != new_values.get(key):
            raise ConfigError(
                f"{out}: was made with {key}={old_values.get(key)!r}, this command says {new_values.get(key)!r}; "
                "choose another out=…, or delete the folder to start over"
            )


def _plain_tree(cfg: Any) -> dict[str, Any]:
    """A configuration as dicts and lists."""
    tree: Any = OmegaConf.to_container(cfg)
    return dict(tree)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree by dotted key."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            values |= _flat(value, f"{name}.")
        else:
            values[name] = value
    return values


VERB_OF = {
    "samples": "sample", "scores": "score", "candidate": "score", "pairs": "mine", "ratings": "mine",
    "songs": "prepare",
}  # fmt: skip
"""The verb that writes each kind of input folder."""


def check_inputs(**folders: str | Sequence[str]) -> None:
    """DataError for the first input folder that does not exist, with the command that makes it. "" is no input."""
    for kind, names in folders.items():
        for name in [names] if isinstance(names, str) else names:
            if name and not Path(name).exists():
                command = presets.command_that_makes(name) or f"diffdpo {VERB_OF[kind]}"
                raise DataError(f"{name}: no such folder; make it first with `{command}`")
