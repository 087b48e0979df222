"""A search shared by two processes: by prompts, and by the songs of one prompt."""

import json

import pytest
import torch
from support.launch import launch, verb

from diffdpo.data.latents import read_latents
from diffdpo.data.samples import open_samples
from diffdpo.runs import MANIFEST, read_json

pytestmark = pytest.mark.slow

TEXTS = {"one": "rock", "two": "ambient"}


def words(path, bundle, names):
    """The words of a search for three songs of some prompts."""
    prompts = [{"id": name, "text": TEXTS[name], "duration_s": 2} for name in names]
    path.write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts), encoding="utf-8")
    return [
        "search", f"prompts={path}", f"model.args.bundle={bundle}", "sampling.steps=2", "search.budget=3",
        "search.reward.weights={harmony.key: 1, harmony.tuning: 0.5}",
    ]  # fmt: skip


@pytest.mark.parametrize("names", [("one", "two"), ("one",)], ids=["prompts", "songs"])
def test_two_processes_share_a_search(tmp_path, bundle, names):
    arguments = words(tmp_path / "p.jsonl", bundle, names)
    verb(*arguments, f"out={tmp_path / 'alone'}")
    launch("two", *arguments, f"out={tmp_path / 'shared'}")
    alone, shared = (read_json(tmp_path / name / MANIFEST) for name in ("alone", "shared"))
    assert shared["winners"] == alone["winners"]
    assert (shared["nfe"], shared["songs"], shared["world"]) == (alone["nfe"], 3 * len(names), 2)
    for row in open_samples(tmp_path / "alone").rows():
        first, second = (
            read_latents(open_samples(tmp_path / name).latents(row.sample_id)) for name in ("alone", "shared")
        )
        assert torch.allclose(first, second, rtol=0, atol=1e-5 * float(first.abs().max()))
