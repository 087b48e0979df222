"""Pairs of songs with plans, in the layout that `sample` and `mine` write, without a model."""

import json

import torch

from diffdpo.data import tables
from diffdpo.data.latents import write_latents
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.plans import plan_digest, write_plan
from diffdpo.data.samples import SAMPLES, SampleRow
from diffdpo.types import Plan


def codes_plan(codes, planner="planner-first"):
    """A plan of audio codes; None stays None."""
    return None if codes is None else Plan(planner=planner, tensors={"codes": torch.as_tensor(codes).int()})


def write_planned_pairs(folder, model, prompts, plans, pairs):
    """The folder of the pairs. `prompts` are lines of prompts.jsonl, `plans` is the plan (or None) of each song by
    id, PROMPT.NUMBER, and `pairs` are winner, loser and further columns of each pair."""
    samples = folder / "songs"
    samples.mkdir(parents=True)
    (samples / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    durations = {prompt["id"]: prompt["duration_s"] for prompt in prompts}
    rows = []
    for name, plan in plans.items():
        prompt = name.rsplit(".", 1)[0]
        write_latents(samples / "latents" / f"{name}.safetensors", torch.zeros(4, 2))
        if plan is not None:
            write_plan(samples / "plans" / f"{name}.safetensors", plan)
        rows.append(
            SampleRow(
                sample_id=name,
                prompt_id=prompt,
                duration_s=durations[prompt],
                model=json.dumps(model),
                plan="" if plan is None else plan_digest(plan),
            )
        )
    tables.append(samples, SAMPLES, rows)
    tables.append(
        folder / "pairs",
        PAIRS,
        [
            PairRow(
                prompt_id=winner.rsplit(".", 1)[0], samples="../songs", winner=winner, loser=loser, **columns
            )
            for winner, loser, columns in pairs
        ],
    )
    return folder / "pairs"
