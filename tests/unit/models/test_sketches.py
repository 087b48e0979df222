"""A model without weights has the sizes, the latents and the estimate of the model that is loaded."""

import pytest
from support.ace_step import write_diffusers as write_ace_step
from support.stable_audio3 import write_diffusers, write_published
from support.stable_audio_open import write_open

from diffdpo.models import MODELS
from diffdpo.objectives import OBJECTIVES
from diffdpo.training.config import TrainConfig
from diffdpo.training.estimate import estimate_memory
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

CASES = (
    ("ace_step", write_ace_step, {}),
    ("stable_audio_3", write_published, {"audio": False}),
    ("stable_audio_3", write_diffusers, {"audio": False, "behavior": "diffusers"}),
    ("stable_audio_open", write_open, {"audio": False}),
)


@pytest.mark.parametrize(("name", "write", "args"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_a_sketch_has_the_sizes_of_the_checkpoint(tmp_path, name, write, args):
    write(tmp_path)
    part = MODELS[name](checkpoint=str(tmp_path), **args)
    model, (sketch, embedding) = part.load(), part.sketch()
    sizes = {key: value.shape for key, value in model.network.state_dict().items()}
    assert {key: value.shape for key, value in sketch.network.state_dict().items()} == sizes
    assert all(p.is_meta for p in sketch.network.parameters())
    assert name == "ace_step" or sketch.spec == model.spec
    real = model.embed(Prompt(id="p", text="rock", duration_s=1.0))
    assert {key: value.shape[-1] for key, value in embedding.items()} == {
        key: value.shape[-1] for key, value in real.items()
    }
    if write in (write_published, write_open):
        count = sum(p.numel() for p in model.network.parameters())
        count += sum(b.numel() for b in model.network.buffers())
        cfg = TrainConfig(global_batch=1, per_device=1, trackers=[])
        memory = estimate_memory(sketch, embedding, OBJECTIVES["flow_matching"](), cfg, 32)
        assert (memory.weights, memory.reference) == (4 * count, 0)
        assert memory.activations > 0


@pytest.mark.parametrize(
    ("name", "checkpoint", "parameters", "seconds", "times"),
    [
        ("stable_audio_3", "stabilityai/stable-audio-3-medium-base", 1453, 384, None),
        ("stable_audio_3", "stabilityai/stable-audio-3-small-music-base", 459, 120, None),
        ("stable_audio_3", "stabilityai/stable-audio-3-small-music", 459, 120, 9),
        ("stable_audio_open", "stabilityai/stable-audio-open-1.0", 1057, 47.55, None),
    ],
)
def test_what_is_not_here_has_its_published_sizes(name, checkpoint, parameters, seconds, times):
    model, _ = MODELS[name](checkpoint=checkpoint).sketch()
    assert sum(p.numel() for p in model.network.parameters()) / 1e6 == pytest.approx(parameters, abs=1)
    spec = model.spec
    assert spec.max_frames / spec.frames_per_second == pytest.approx(seconds, abs=0.1)
    assert (spec.times and len(spec.times)) == times
