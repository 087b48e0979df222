"""Three steps in one process of every model under every kind of weights: split backward is the stacked one."""

import json

import pytest
from support.launch import rows, verb
from support.model_matrix import SPLIT, TRAIN, WEIGHTS, same_steps, train

pytestmark = pytest.mark.slow

MODELS = ("ace_step", "stable_audio_3", "stable_audio_open")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.mark.parametrize(("name", "weights"), [(name, kind) for name in MODELS for kind in WEIGHTS])
def test_three_steps_whole_and_split(folder, published_models, pairs, name, weights):
    whole, split = (
        train(folder / name / f"{weights}-{layout}", pairs, published_models[name], weights, *more)
        for layout, more in (("stacked", ()), ("split", (SPLIT, "train.gradient_checkpointing=true")))
    )
    assert whole[0]["margin"] == 0.0 != whole[-1]["margin"]
    same_steps(whole, split, 1e-5)


@pytest.mark.parametrize(("name", "tolerance"), [("ace_step", 3e-4), ("stable_audio_3", 1e-5)])
def test_the_rows_of_a_slider_have_strengths_of_their_own(folder, published_models, pairs, name, tolerance):
    """Rows of several strengths in one pass under checkpointing are the rows one by one.

    The loss of the small ACE-Step is the square of a small difference of velocities, 1e-5.
    """
    file = folder / "sliders.jsonl"
    file.write_text(json.dumps({"name": "x", "plus": "{neutral}, loud", "minus": "{neutral}, quiet"}))
    data = (f"data.sliders={file}", f"data.samples={pairs.parent / 'samples'}", "data.scales=[-1, 0.5, 1]")
    steps = []
    for layout, more in (("stacked", ("train.gradient_checkpointing=true",)), ("split", (SPLIT,))):
        out = folder / name / f"slider-{layout}"
        cache = f"embedding_cache={folder / 'cache'}"
        verb(
            "train", f"out={out}", cache, *data, *published_models[name],
            *(word for word in TRAIN if not word.startswith("objective.")), "objective.name=slider",
            *WEIGHTS["lora"], *more,
        )  # fmt: skip
        steps.append(rows(out))
    same_steps(*steps, tolerance)
