"""The verb `train`: from folders and a configuration to `training.session.optimize`."""

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from diffdpo import presets
from diffdpo.checks import check_seed
from diffdpo.config_paths import PATH
from diffdpo.data.datasets.examples import DataConfig, build_examples, check_data_config, data_digest
from diffdpo.data.datasets.generated import Source
from diffdpo.data.datasets.stream import accumulation
from diffdpo.models.adapter_config import check_untimed
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model, build_objective, check_model, model_digest
from diffdpo.progress import log
from diffdpo.registry import Choice
from diffdpo.run_dir import check_inputs, dist_env, open_run
from diffdpo.runs import read_json
from diffdpo.training.config import TrainConfig, free_keys
from diffdpo.types import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator

DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
"""The environment variable in which `accelerate launch` names DeepSpeed's configuration."""


@dataclass
class TrainRun:
    """Train a song model on songs, preference pairs or rated songs."""

    out: str = field(default=MISSING, metadata=PATH)
    """Run directory; the same command again resumes from it."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    data: DataConfig = field(default_factory=DataConfig)
    objective: Choice = field(default_factory=lambda: Choice("dpo"))
    train: TrainConfig = field(default_factory=TrainConfig)
    embedding_cache: str = field(default="", metadata=PATH)
    """Folder that keeps embeddings of prompts between runs, by content, and mapped; else in memory."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self, "seed")

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        build_objective(self.objective)
        check_model(self.model)
        check_untimed(self.model)


def run(cfg: TrainRun) -> Path:
    """Train to the last step, from the newest checkpoint if there is one."""
    from diffdpo.training.strategy import build_accelerator

    objective = build_objective(cfg.objective)
    check_inputs(songs=cfg.data.songs, pairs=cfg.data.pairs, ratings=cfg.data.ratings)
    accumulation(cfg.train.global_batch, cfg.train.per_device, int(os.environ.get("WORLD_SIZE", "1")))
    check_data_config(cfg.data, objective.batch_kind, cfg.objective.name)
    if name := os.environ.get(DEEPSPEED_FILE):
        os.environ[DEEPSPEED_FILE] = presets.deepspeed_file(name)
    accelerator = build_accelerator(cfg.train, cfg.out)
    inputs = {"data": data_digest(cfg.data, objective.batch_kind), "model": model_digest(cfg.model)}
    free = [f"train.{key}" for key in free_keys(cfg.train)]
    with open_run(cfg, free=free, inputs=inputs, dist=dist_env()) as out:
        if _is_done(out, cfg):
            log(f"{out}: {cfg.train.steps} steps are done", visible=accelerator.is_main_process)
        else:
            _train(cfg, objective, out, accelerator)
    return out


def _train(cfg: TrainRun, objective: Objective, out: Path, accelerator: "Accelerator") -> None:
    from diffdpo.training.checkpoint import check_latest
    from diffdpo.training.session import optimize

    check_latest(out / "checkpoints", accelerator)
    model = build_model(cfg.model)
    store = EmbeddingStore(model, Path(cfg.embedding_cache) if cfg.embedding_cache else None)
    source = Source(
        embed=store.embed,
        embed_plan=store.embed_plan,
        frames_per_second=model.spec.frames_per_second,
        channels=model.spec.channels,
        seed=cfg.seed,
        report=partial(log, visible=accelerator.is_main_process),
    )
    optimize(
        model,
        build_examples(cfg.data, objective.batch_kind, cfg.objective.name, source),
        objective,
        cfg.train,
        out=out,
        seed=cfg.seed,
        accelerator=accelerator,
        objective_name=cfg.objective.name,
    )


def _is_done(out: Path, cfg: TrainRun) -> bool:
    """Whether an earlier command reached the last step."""
    manifest = out / "manifest.json"
    return manifest.is_file() and read_json(manifest).get("steps", 0) >= cfg.train.steps
