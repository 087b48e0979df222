"""The verb `train`: from folders and a configuration to `training.session.optimize`."""

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from diffdpo import presets
from diffdpo.checks import check_seed
from diffdpo.config_paths import PATH
from diffdpo.data.datasets.examples import DataConfig, build_examples, check_data_config, data_digest
from diffdpo.data.datasets.generated import Source
from diffdpo.data.datasets.stream import Examples, accumulation
from diffdpo.data.lineage import data_terms
from diffdpo.data.prompts import read_edits, read_prompts
from diffdpo.data.refresh import prompt_inputs
from diffdpo.data.sliders import select_slider
from diffdpo.inputs import digest
from diffdpo.models.adapter_config import check_untimed
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model, build_objective, build_scorers, check_model, model_digest
from diffdpo.progress import log
from diffdpo.recipes.own_songs import OwnSongs, sample_neutrals
from diffdpo.registry import Choice
from diffdpo.run_dir import check_inputs, dist_env, open_run
from diffdpo.runs import MANIFEST, is_finished, read_json, write_json
from diffdpo.training.config import TrainConfig, check_slider, data_world, free_keys
from diffdpo.types import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffdpo.training.validation import Validation

DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
"""The environment variable in which `accelerate launch` names DeepSpeed's configuration."""


@dataclass
class TrainRun:
    """Train a song model on songs, preference pairs, rated songs, or prompts alone (sliders)."""

    out: str = field(default=MISSING, metadata=PATH)
    """Run directory; the same command again resumes from it."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    data: DataConfig = field(default_factory=DataConfig)
    objective: Choice = field(default_factory=lambda: Choice("dpo"))
    train: TrainConfig = field(default_factory=TrainConfig)
    embedding_cache: str = field(default="", metadata=PATH)
    """Folder that keeps embeddings of prompts between runs, by content, and mapped; else in memory."""
    own_songs: OwnSongs = field(default_factory=OwnSongs)
    """The songs that a slider is trained on where `data.samples` names none."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self, "seed")

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        check_slider(self.train, build_objective(self.objective))
        check_model(self.model)
        if self.train.validation is not None:
            build_scorers(self.train.validation.scorers)
        check_untimed(self.model)


def run(cfg: TrainRun) -> Path:
    """Train to the last step, from the newest checkpoint if there is one."""
    from diffdpo.training.strategy import build_accelerator
    from diffdpo.training.validation_data import check_validation

    objective = build_objective(cfg.objective)
    data = cfg.data
    check_inputs(songs=data.songs, pairs=data.pairs, ratings=data.ratings, samples=data.samples)
    groups = data_world(cfg.train, int(os.environ.get("WORLD_SIZE", "1")))
    accumulation(cfg.train.global_batch, cfg.train.per_device, groups)
    check_data_config(cfg.data, objective.batch_kind, cfg.objective.name)
    check_validation(cfg.train.validation, cfg.data, objective.batch_kind, cfg.objective.name)
    if name := os.environ.get(DEEPSPEED_FILE):
        os.environ[DEEPSPEED_FILE] = presets.deepspeed_file(name)
    accelerator = build_accelerator(cfg.train, cfg.out)
    inputs = {
        "data": data_digest(cfg.data, objective.batch_kind),
        "model": model_digest(cfg.model),
        **_validation_inputs(cfg, objective),
    }
    free = [f"train.{key}" for key in free_keys(cfg.train)]
    with open_run(cfg, free=free, inputs=inputs, dist=dist_env()) as out:
        if _is_done(out, cfg):
            log(f"{out}: {cfg.train.steps} steps are done", visible=accelerator.is_main_process)
        else:
            _train(cfg, objective, out, accelerator)
            if accelerator.is_main_process:
                _add_terms(out)
    return out


def _add_terms(out: Path) -> None:
    """Licenses and consents of all that the run was made from, into its manifest."""
    manifest = read_json(out / MANIFEST)
    write_json(out / MANIFEST, {**manifest, **data_terms([out]).entries()})


def _train(cfg: TrainRun, objective: Objective, out: Path, accelerator: "Accelerator") -> None:
    from diffdpo.training.checkpoint import check_latest
    from diffdpo.training.session import optimize
    from diffdpo.training.validation_data import training_part

    check_latest(out / "checkpoints", accelerator)
    if objective.batch_kind == "contrast" and not cfg.data.samples:
        contrasts = select_slider(Path(cfg.data.sliders), cfg.data.slider)
        songs = sample_neutrals(contrasts, cfg.own_songs, cfg.model, cfg.seed, out)
        cfg = replace(cfg, data=replace(cfg.data, samples=str(songs)))
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
    kind, name = objective.batch_kind, cfg.objective.name
    examples = build_examples(cfg.data, kind, name, source, training_part(cfg.train.validation))
    optimize(
        model,
        examples,
        objective,
        cfg.train,
        out=out,
        seed=cfg.seed,
        accelerator=accelerator,
        objective_name=name,
        validation=_build_validation(cfg, objective, examples, source, store),
    )


def _validation_inputs(cfg: TrainRun, objective: Objective) -> dict[str, str]:
    """Digests of what is validated on."""
    validation, inputs = cfg.train.validation, {}
    if validation is not None and validation.pairs:
        data = replace(cfg.data, pairs=validation.pairs)
        inputs["validation pairs"] = data_digest(data, objective.batch_kind)
    if validation is not None and validation.prompts:
        prompts, edits = read_prompts(validation.prompts), read_edits(validation.prompts)
        inputs["validation prompts"] = digest(prompt_inputs(prompts, edits, ""))
    return inputs


def _build_validation(
    cfg: TrainRun, objective: Objective, examples: Examples, source: Source, store: EmbeddingStore
) -> "Validation | None":
    """What is validated, with all prompts embedded."""
    from diffdpo.training.validation import Validation
    from diffdpo.training.validation_data import build_held_out, build_songs, check_times

    validation = cfg.train.validation
    if validation is None:
        return None
    check_times(validation, store.model)
    choice = {"name": cfg.model.name, **cfg.model.args}
    return Validation(
        cfg=validation,
        examples=build_held_out(
            validation, cfg.data, objective.batch_kind, cfg.objective.name, source, examples
        ),
        songs=build_songs(
            validation, store, build_scorers(validation.scorers), choice, model_digest(cfg.model)
        ),
    )


def _is_done(out: Path, cfg: TrainRun) -> bool:
    """Whether an earlier command reached the last step, or the step where validation ends the training."""
    if not is_finished(out):
        return False
    manifest, validation = read_json(out / MANIFEST), cfg.train.validation
    stale = manifest.get("stopped", {}).get("stale", 0)
    stops = validation is not None and 0 < validation.patience <= stale
    return stops or manifest.get("steps", 0) >= cfg.train.steps
