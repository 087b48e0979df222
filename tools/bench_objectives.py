"""Compares objectives on the tiny model with the same songs, the same pairs and the same compute. JSON out.

    python tools/bench_objectives.py [--only dpo nft] [--seeds 0 1] [--set candidates=8] [--table]

Candidates are sampled, scored and mined once. Every objective then trains the same adapters for the same number of
forward passes of songs (a backward pass counts as two), and is evaluated on other prompts with the seeds of the
base model. Finished runs are not repeated; `--table` prints their results as Markdown and runs nothing.

The table has the mean change of the mined axes in standard deviations of the base, and of the judge in its own
unit, with 95 % intervals over prompts, seeds pooled; the rise of the winners' error over the reference's; and the
diversity, the mean cosine distance of musicnn embeddings between the songs of a prompt, over that of the base.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.config import build_config
from diffdpo.data.datasets.examples import DataConfig
from diffdpo.data.samples import Samples, open_samples
from diffdpo.data.song_scores import join_scores, read_scores
from diffdpo.encoders import musicnn
from diffdpo.evaluation.effects import PairedSample, effects, pair_rows, standardised_change
from diffdpo.evaluation.selection import winner_rise
from diffdpo.progress import log
from diffdpo.recipes import mine, sample, score, train
from diffdpo.recipes.mine import MineRun
from diffdpo.recipes.next_model import next_model
from diffdpo.recipes.round import RoundRun
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.score import ScoreRun
from diffdpo.recipes.train import TrainRun
from diffdpo.registry import Choice
from diffdpo.runs import METRICS, atomic_write, read_json
from diffdpo.scorers import DEFAULT_SCORERS, SCORERS
from diffdpo.statistics import paired_effect
from diffdpo.text_files import read_jsonl
from diffdpo.training.config import ReferenceConfig, export_folder
from tools.bench.measure import markdown_table

DEMO = Path(__file__).resolve().parents[1] / "configs" / "tiny" / "demo.yaml"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An objective, its data, and the number of examples a step that costs as much as eight pairs of DPO.

    Eight pairs are 16 songs, each with a forward and a backward pass of the policy and a forward pass of the
    reference: 64 passes. A rated song without a reference costs 3, one with an old policy as well 5.
    """

    objective: Choice
    batch: int = 8
    per_device: int = 8
    uses: str = "pairs"
    data: Mapping[str, Any] = field(default_factory=dict)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    old: ReferenceConfig = field(default_factory=ReferenceConfig)


ENTRIES = {
    "dpo": Entry(objective=Choice("dpo", {"beta": 500.0})),
    "dpo_anchor": Entry(objective=Choice("dpo", {"beta": 500.0, "anchor": 1.0})),
    "sdpo": Entry(objective=Choice("dpo", {"beta": 500.0, "safeguard": 0.9})),
    "guarded": Entry(
        objective=Choice("dpo", {"beta": 500.0, "timestep_weight": "clipped_elbo", "safeguard": 0.5})
    ),
    "dpo_beta3000": Entry(objective=Choice("dpo", {"beta": 3000.0})),
    "guarded_beta3000": Entry(  # the demo's
        objective=Choice("dpo", {"beta": 3000.0, "timestep_weight": "clipped_elbo", "safeguard": 0.5})
    ),
    "linear_dpo": Entry(
        objective=Choice("linear_dpo", {"beta": 500.0}), reference=ReferenceConfig("ema", decay=0.995)
    ),
    "expert_iteration": Entry(
        objective=Choice("flow_matching"), batch=21, per_device=7, uses="ratings", data={"top_share": 0.1}
    ),
    "nft": Entry(
        objective=Choice("nft", {"advantage_clip": 2.0}),
        batch=3,
        per_device=3,
        uses="ratings",
        data={"group_size": 4},
        old=ReferenceConfig("ema", decay=0.5, ramp=0.001),
    ),
}


def prepare(cfg: RoundRun, out: Path) -> tuple[Path, Path]:
    """The folder of mined pairs and ratings, and that of the base model's songs of the evaluation prompts."""
    songs = sample_songs(
        cfg, cfg.model, out / "candidates", cfg.mining_prompts, cfg.candidates, cfg.seed + 1000
    )
    base = sample_songs(
        cfg, cfg.model, out / "base", cfg.evaluation_prompts, cfg.evaluation_samples, cfg.seed
    )
    score.run(
        ScoreRun(samples=[str(songs), str(base)], out=str(out / "scores"), scorers=list(DEFAULT_SCORERS))
    )
    mine_cfg = MineRun(
        samples=[str(songs)],
        scores=str(out / "scores"),
        out=str(out / "mined"),
        axes=cfg.mine.axes,
        rule=cfg.mine.rule,
    )
    return mine.run(mine_cfg), base


def sample_songs(cfg: RoundRun, model: Choice, out: Path, prompts: str, count: int, seed: int) -> Path:
    return sample.run(
        SampleRun(
            out=str(out),
            prompts=prompts,
            model=model,
            sampling=cfg.sample.sampling,
            per_prompt=count,
            seed=seed,
        )
    )


def run_objective(name: str, seed: int, cfg: RoundRun, mined_folder: Path, out: Path) -> None:
    """Train one objective with one seed, sample the evaluation prompts and score the songs."""
    entry = ENTRIES[name]
    t_start = time.monotonic()
    settings = replace(
        cfg.train.train,
        global_batch=entry.batch,
        per_device=entry.per_device,
        reference=entry.reference,
        old=entry.old,
        trackers=[],
    )
    training = TrainRun(
        out=str(out / "train"),
        model=cfg.model,
        data=DataConfig(**{entry.uses: str(mined_folder), **entry.data}),
        objective=entry.objective,
        train=settings,
        seed=seed,
    )
    train.run(training)
    trained_s = time.monotonic() - t_start
    model = next_model(cfg.model, export_folder(out / "train", settings.steps), lora=True)
    songs = sample_songs(cfg, model, out / "songs", cfg.evaluation_prompts, cfg.evaluation_samples, cfg.seed)
    score.run(ScoreRun(samples=[str(songs)], out=str(out / "scores"), scorers=list(DEFAULT_SCORERS)))
    result = {"train_seconds": trained_s, "diversity": diversity(open_samples(songs))}
    atomic_write(out / "facts.json", json.dumps(result))


def diversity(samples: Samples) -> float:
    """Mean cosine distance between musicnn embeddings of the songs of a prompt."""
    listener, by_prompt = musicnn.load_musicnn(), dict[str, list[torch.Tensor]]()
    for row in samples.rows():
        clip = audio.resample(audio.read(samples.audio(row.sample_id)), musicnn.MUSICNN_SAMPLE_RATE)
        embedding = listener.embed(torch.from_numpy(clip.samples.mean(0))).embedding.mean(0)
        by_prompt.setdefault(row.prompt_id, []).append(embedding)
    return float(
        np.mean(
            [
                1 - float(torch.cosine_similarity(first, second, dim=0))
                for songs in by_prompt.values()
                for first, second in combinations(songs, 2)
            ]
        )
    )


def paired_samples(base: Path, folder: Path, base_scores: Any, seed: int) -> list[PairedSample]:
    """The songs of one run, each with the base model's song of the same prompt and noise."""
    songs = open_samples(folder / "songs")
    aligned_scores = join_scores(read_scores(folder / "scores"), songs, songs.prompts()).by_song()
    rows = pair_rows(open_samples(base).rows(), songs.rows())
    return [
        PairedSample(
            sample_id=f"{base_row.sample_id}/{seed}",
            prompt_id=base_row.prompt_id,
            group=base_row.group,
            baseline=base_scores[base_row.sample_id],
            aligned=aligned_scores[aligned_row.sample_id],
        )
        for base_row, aligned_row in rows
    ]


def objective_summary(
    name: str, folders: Mapping[int, Path], base: Path, out: Path, mined_folder: Path
) -> dict[str, Any]:
    """The result of an objective over all its seeds."""
    songs = open_samples(base)
    base_scores = join_scores(read_scores(out / "scores"), songs, songs.prompts()).by_song()
    axes = [axis for scorer in SCORERS.values() for axis in scorer.axes]
    pairs = [
        pair for seed, folder in folders.items() for pair in paired_samples(base, folder, base_scores, seed)
    ]
    axis_effects = effects(pairs, read_json(mined_folder / "manifest.json")["axes"], axes)
    changes = np.array([standardised_change(pair, axis_effects) for pair in pairs])
    total = paired_effect(np.zeros_like(changes), changes, [pair.group for pair in pairs])
    run_results = [read_json(folder / "facts.json") for folder in folders.values()]
    metrics = [
        [row for _, row in read_jsonl(folder / "train" / METRICS, non_finite=True)]
        for folder in folders.values()
    ]
    rises = [rise for rows in metrics if (rise := winner_rise(rows)) is not None]
    return {
        "objective": name,
        "seeds": sorted(folders),
        "mined": [total.mean, total.low, total.high],
        "judges": {
            a.axis: [a.effect.mean, a.effect.low, a.effect.high] for a in axis_effects if a.role != "mined"
        },
        "axes": {
            a.axis: [a.effect.mean, a.effect.low, a.effect.high] for a in axis_effects if a.role == "mined"
        },
        "better": sum(a.effect.direction == "better" for a in axis_effects if a.role == "mined"),
        "worse": sum(a.effect.direction == "worse" for a in axis_effects if a.role == "mined"),
        "winner_rise": float(np.mean(rises)) if rises else None,
        "diversity": float(np.mean([f["diversity"] for f in run_results]))
        / read_json(out / "base-facts.json")["diversity"],
        "train_seconds": float(np.mean([f["train_seconds"] for f in run_results])),
    }


def objectives_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results in Markdown, the best objective first."""

    def interval(values: Sequence[float]) -> str:
        return f"{values[0]:+.3f} ({values[1]:+.3f} … {values[2]:+.3f})"

    head = (
        "objective", "seeds", "mined axes, sd", "axes better / worse", "judge", "winners' error", "diversity",
        "training, s",
    )  # fmt: skip
    lines = []
    for row in sorted(rows, key=lambda row: -row["mined"][0]):
        judge = ", ".join(interval(values) for values in row["judges"].values())
        rise = "" if row["winner_rise"] is None else f"{row['winner_rise']:+.2%}"
        cells = (
            row["objective"], len(row["seeds"]), interval(row["mined"]), f"{row['better']} / {row['worse']}", judge,
            rise, f"{row['diversity']:.2f}", f"{row['train_seconds']:.0f}",
        )  # fmt: skip
        lines.append(cells)
    return markdown_table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench_objectives"))
    parser.add_argument("--only", nargs="*", choices=sorted(ENTRIES), default=sorted(ENTRIES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    parser.add_argument(
        "--set", nargs="*", default=[], dest="overrides", help="key=value for configs/tiny/demo.yaml"
    )
    args = parser.parse_args()
    cfg = build_config(RoundRun, DEMO, args.overrides)
    out: Path = args.out
    mined_folder, base = (out / "mined", out / "base") if args.table else prepare(cfg, out)
    if not (out / "base-facts.json").is_file():
        atomic_write(out / "base-facts.json", json.dumps({"diversity": diversity(open_samples(base))}))
    for seed in () if args.table else args.seeds:
        for name in args.only:
            folder = out / f"{name}-{seed}"
            if not (folder / "facts.json").is_file():
                log(f"{name}, seed {seed}")
                run_objective(name, seed, cfg, mined_folder, folder)
    rows = []
    for name in ENTRIES:
        folders = {
            int(path.parent.name.rsplit("-", 1)[1]): path.parent for path in out.glob(f"{name}-*/facts.json")
        }
        if folders:
            rows.append(objective_summary(name, folders, base, out, mined_folder))
    print(objectives_table(rows) if args.table else json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
