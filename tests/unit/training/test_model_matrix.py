"""Three steps in one process of every model under every kind of weights: split backward is the stacked one."""

import pytest
from support.model_matrix import SPLIT, WEIGHTS, same_steps, train

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
