"""The axis a song is to be good on, as the network hears it: a direction of its own, added to the style."""

import json

import pytest
import torch
from support.rows import song_row
from support.songs import write_samples

from diffdpo.data.prompts import negative_prompt, read_prompts
from diffdpo.models import MODELS
from diffdpo.models.diffrhythm.adapter import AXIS_SCALE
from diffdpo.scorers import SCORERS
from diffdpo.types import Prompt

AXES = [axis for scorer in SCORERS.values() for axis in scorer.axes]


@pytest.fixture(scope="module")
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


def styles(model, *prompts):
    return model.condition([song_row(model, prompt) for prompt in prompts], 16)["style"]


def about(axis, text=None):
    """A prompt for a song that is good on an axis."""
    return Prompt(id="a", text=text, controls=(("axis", axis),))


def test_an_axis_adds_one_direction_to_the_style_and_touches_nothing_else(model):
    plain, asked = Prompt(id="a", text="slow rock"), about("harmony.key", "slow rock")
    other, none = about("harmony.key", "fast metal"), about("harmony.key")
    before, after = (model.condition([song_row(model, prompt)], 16) for prompt in (plain, asked))
    assert all(torch.equal(before[name], after[name]) for name in before if name != "style")
    slow, key, fast_key, key_alone = styles(model, plain, asked, other, none)
    assert float((key - slow).norm()) == pytest.approx(AXIS_SCALE)
    assert torch.allclose(key - slow, key_alone, atol=1e-6)
    assert torch.allclose(
        fast_key - styles(model, Prompt(id="b", text="fast metal"))[0], key_alone, atol=1e-6
    )


def test_every_axis_has_a_direction_of_its_own():
    model = MODELS["tiny"]().load()
    directions = styles(model, *map(about, AXES))
    overlap = directions @ directions.T - torch.eye(len(AXES))
    assert directions.shape == (len(AXES), 512)
    assert float(overlap.abs().max()) < 0.25  # of unit vectors in 512 dimensions: deviation 0.044


def test_a_prompt_line_asks_for_an_axis_and_the_negative_branch_does_not(tmp_path, model):
    path = write_samples(tmp_path, prompts=1, per_prompt=1) / "prompts.jsonl"
    path.write_text(json.dumps({"id": "a", "negative_text": "slow", "axis": "rhythm.pulse"}))
    (prompt,) = read_prompts(path)
    assert prompt.control("axis") == "rhythm.pulse"
    assert negative_prompt(prompt).control("axis") is None
    assert torch.equal(styles(model, negative_prompt(prompt)), styles(model, Prompt(id="b", text="slow")))
