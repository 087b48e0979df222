"""The axis a song is to be good on, as the network hears it: a direction of its own, added to the style."""

import json

import pytest
import torch
from support.songs import write_samples

from diffdpo.data.prompts import negative, read_prompts
from diffdpo.models import MODELS
from diffdpo.models.diffrhythm.adapter import AXIS_SCALE
from diffdpo.scorers import SCORERS
from diffdpo.types import Prompt

AXES = [axis for scorer in SCORERS.values() for axis in scorer.axes]


@pytest.fixture(scope="module")
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


def styles(model, *prompts):
    return model.condition([model.embed(prompt) for prompt in prompts], 16)["style"]


def test_an_axis_adds_one_direction_to_the_style_and_touches_nothing_else(model):
    plain, asked = Prompt(id="a", text="slow rock"), Prompt(id="a", text="slow rock", axis="harmony.key")
    other, none = Prompt(id="a", text="fast metal", axis="harmony.key"), Prompt(id="a", axis="harmony.key")
    before, after = (model.condition([model.embed(prompt)], 16) for prompt in (plain, asked))
    assert all(torch.equal(before[name], after[name]) for name in before if name != "style")
    slow, key, fast_key, key_alone = styles(model, plain, asked, other, none)
    assert float((key - slow).norm()) == pytest.approx(AXIS_SCALE)
    assert torch.allclose(key - slow, key_alone, atol=1e-6)
    assert torch.allclose(
        fast_key - styles(model, Prompt(id="b", text="fast metal"))[0], key_alone, atol=1e-6
    )


def test_every_axis_has_a_direction_of_its_own():
    model = MODELS["tiny"]().load()
    directions = styles(model, *(Prompt(id="a", axis=axis) for axis in AXES))
    overlap = directions @ directions.T - torch.eye(len(AXES))
    assert directions.shape == (len(AXES), 512)
    assert float(overlap.abs().max()) < 0.25  # of unit vectors in 512 dimensions: deviation 0.044


def test_a_prompt_line_asks_for_an_axis_and_the_negative_branch_does_not(tmp_path, model):
    path = write_samples(tmp_path, prompts=1, per_prompt=1) / "prompts.jsonl"
    path.write_text(json.dumps({"id": "a", "negative_text": "slow", "axis": "rhythm.pulse"}))
    (prompt,) = read_prompts(path)
    assert prompt.axis == "rhythm.pulse"
    assert negative(prompt).axis == ""
    assert torch.equal(styles(model, negative(prompt)), styles(model, Prompt(id="b", text="slow")))
