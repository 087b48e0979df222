"""Passes of a micro-batch: whatever goes through the networks together, losses and gradients are the same.

The standard is one forward pass of all songs, stacked and padded to the longest, and the backward pass of its mean.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.objectives import MEMBERS
from support.training import batch, identity

from diffdpo.data.datasets.memory import PairsInMemory
from diffdpo.models import MODELS
from diffdpo.models.base import LatentSpec
from diffdpo.objectives import OBJECTIVES
from diffdpo.objectives.terms.weights import Span
from diffdpo.training.config import InpaintConfig, LoraConfig, TrainConfig
from diffdpo.training.pass_plan import choose_plan, plan_passes
from diffdpo.training.passes import backward_passes
from diffdpo.training.references import AdapterOff, ErrorCache, MovingCopy
from diffdpo.training.row_scale import scale_rows
from diffdpo.training.run import Training
from diffdpo.training.setup import add_lora, trainable
from diffdpo.training.step import Standards, noise_keys, part_outputs, sample_noise, stack_rows
from diffdpo.training.strategy import build_accelerator

pytestmark = pytest.mark.slow

CFG = TrainConfig(dropout={"style": 0.5}, trackers=[])
LENGTHS = ((30, 24, 17, 21), (18, 18, 18, 12), (30, 30, 22, 9), (30, 24, 16, 16))
STATE = {"steps": 9, "margin_size": 0.05}
OBJECTIVE = {
    "dpo": {"beta": 10.0, "span": Span(0.4)},
    "nft": {},
    "kto": {"beta": 20.0},
    "flow_matching": {},
    "slider": {},
    "dgpo": {},
}
"""Of each kind of batch one, with frame errors (spans) and velocities among their needs."""
NONE = PairsInMemory(pairs=[], latents={}, rows={}, frames_per_second=1.0)
BUDGETS = {"a song each": 24, "two pairs of a length": 108, "all": 10_000}


@pytest.fixture(scope="module")
def accelerator(tmp_path_factory):
    return build_accelerator(CFG, str(tmp_path_factory.mktemp("accelerator")))


@pytest.fixture(scope="module")
def model(bundle):
    """A policy that has left its reference."""
    model = MODELS["tiny"](bundle=str(bundle)).load()
    add_lora(model.network, LoraConfig(rank=4), model.lora_targets, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model.network):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def songs(objective):
    data = batch(MEMBERS[objective.batch_kind], LENGTHS)
    generator = torch.Generator().manual_seed(2)
    frame = torch.arange(data.latents.shape[2])
    changes = {"score": torch.randn(data.frames.shape, generator=generator), "ids": tuple("abcd")}
    changes |= {"visits": (0, 1, 2, 3)}
    if objective.batch_kind == "pair":
        start = torch.randint(0, 8, (4, 1), generator=generator)
        changes |= {
            "soft_label": torch.rand(4, generator=generator),
            "span": (frame >= start) & (frame < start + 6),
            "weight": torch.tensor([1.0, 0.5, 2.0, 1.0]),
        }
    if objective.batch_kind == "contrast":
        changes |= {
            "plus_rows": data.rows[1:] + data.rows[:1],
            "minus_rows": data.rows[2:] + data.rows[:2],
            "scale": torch.tensor([1.0, -1.0, 0.5, 2.0]),
        }
    return replace(data, **changes)


def run_of(accelerator, model, objective, cfg=CFG, cache=None):
    old = MovingCopy.start(model.network, torch.device("cpu"), identity)
    for weight in old.weights.values():
        weight.mul_(0.7)
    return Training(
        accelerator=accelerator, model=model, policy=model.network, reference=AdapterOff(identity), old=old,
        cache=cache, objective=objective, optimizer=None, ema=None, examples=NONE, cfg=cfg, seed=3, folder=Path(),
        fingerprint={},
    )  # fmt: skip


def gradients(network):
    values = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return values


def padded(training, data):
    """Loss, metrics and gradients of all songs in one forward pass, padded to the longest."""
    noise, model = sample_noise(data, training.cfg, seed=3), training.model
    standards = Standards(reference=training.reference, old=training.old)
    parts = [stack_rows(model, data, noise)]
    values = part_outputs(model, model.network, data, training.objective, noise, parts, standards)
    result = training.objective(replace(values, state=STATE))
    (result.loss * data.weight).mean().backward()
    scale_rows(model.network, None)
    return result, gradients(model.network)


def in_passes(training, data):
    noise = sample_noise(data, training.cfg, seed=3)
    return backward_passes(training, data, noise, STATE), gradients(training.model.network)


def assert_same(expected, actual, rel=1e-5):
    (result, wanted), (own_result, own) = expected, actual
    assert torch.allclose(own_result.loss, result.loss, rtol=rel, atol=1e-7)
    assert own_result.metrics.keys() == result.metrics.keys()
    for name, value in result.metrics.items():
        scale = max(1.0, float(value.abs().max()))
        assert torch.allclose(own_result.metrics[name], value, atol=1e-4 * scale), name
    assert own.keys() == wanted.keys()
    norm = torch.stack([g.norm() for g in wanted.values()]).norm()
    assert norm > 0
    assert torch.stack([(wanted[name] - own[name]).norm() for name in wanted]).norm() <= rel * norm


@pytest.mark.parametrize("name", OBJECTIVE)
def test_losses_and_gradients_are_those_of_the_padded_stack(accelerator, model, name):
    """One by one, in passes of a budget that splits pairs or joins examples, and with songs backward one by one."""
    objective = OBJECTIVES[name](**OBJECTIVE[name])
    data = songs(objective)
    expected = padded(run_of(accelerator, model, objective), data)
    settings = [{}, {"split_backward": True}, *({"frames_per_device": n} for n in BUDGETS.values())]
    for changes in settings:
        cfg = replace(CFG, **changes)
        assert_same(expected, in_passes(run_of(accelerator, model, objective, cfg), data))


def test_micro_batches_of_one_two_and_four_add_up_to_the_same(accelerator, model):
    objective = OBJECTIVES["dpo"](beta=20.0)
    data, training = songs(objective), run_of(accelerator, model, objective)
    whole = in_passes(training, data)
    for size in (1, 2):
        losses, totals = [], {}
        for first in range(0, 4, size):
            part = part_of(data, range(first, first + size))
            result, own = in_passes(training, part)
            losses.append(result.loss)
            for name, gradient in own.items():
                totals[name] = totals.get(name, 0) + gradient * size / 4
        assert_same(whole, (replace(whole[0], loss=torch.cat(losses)), totals))


def part_of(data, examples):
    examples = list(examples)
    length = int(data.frames[examples].max())
    return replace(
        data, latents=data.latents[examples, :, :length], span=data.span[examples, :length],
        **{name: getattr(data, name)[examples] for name in ("frames", "weight", "soft_label", "score")},
        **{name: tuple(getattr(data, name)[i] for i in examples)
           for name in ("rows", "positions", "ids", "visits")},
    )  # fmt: skip


def test_in_painting_sees_the_same_song(accelerator, model):
    """The context is the winner's, for a loser that is shorter or longer."""
    objective, cfg = OBJECTIVES["dpo"](beta=20.0), replace(CFG, inpaint=InpaintConfig(0.4, 0.8))
    data = songs(objective)
    data = replace(data, frames=data.frames.flip(1), rows=tuple(rows[::-1] for rows in data.rows))
    for changed in (data, songs(objective)):
        training = run_of(accelerator, model, objective, cfg)
        assert_same(padded(training, changed), in_passes(training, changed))


def test_a_fixed_window_stays(accelerator, model):
    """Such a network sees the padding up to its window, in every pass."""
    spec = replace(model.spec, window="fixed", max_frames=36)
    assert isinstance(spec, LatentSpec)
    fixed, objective = replace(model, spec=spec), OBJECTIVES["dpo"](beta=20.0)
    training, lengths = run_of(accelerator, fixed, objective), []
    expected = padded(training, songs(objective))
    hook = fixed.network.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[:2]))
    actual = in_passes(training, songs(objective))
    hook.remove()
    assert_same(expected, actual)
    assert lengths == [(2, 36)] * 8
    exact, _ = padded(run_of(accelerator, model, objective), songs(objective))
    assert not torch.allclose(exact.loss, expected[0].loss, rtol=1e-5)


def test_no_frame_is_padded_and_no_frame_left_out(accelerator, model):
    """The network sees the frames of the songs, no more, policy and reference alike."""
    objective, frames = OBJECTIVES["dpo"](beta=20.0), []
    data = songs(objective)
    hook = model.network.register_forward_pre_hook(
        lambda module, args: frames.append(args[0].shape[0] * args[0].shape[1])
    )
    in_passes(run_of(accelerator, model, objective), data)
    hook.remove()
    assert sum(frames) == 2 * int(data.frames.sum())
    assert max(frames) == 2 * 30


def test_the_cache_of_reference_errors_fills_by_pass_and_saves_its_pass(accelerator, model):
    cfg = replace(CFG, reference=replace(CFG.reference, cached_draws=4))
    objective, cache, calls = OBJECTIVES["dpo"](beta=20.0), ErrorCache(4, {}), []
    data = songs(objective)
    training = run_of(accelerator, model, objective, cfg, cache)
    first = in_passes(training, data)
    assert set(cache.errors) == set(map(str, noise_keys(data, cfg)))
    hook = model.network.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    again = in_passes(training, data)
    hook.remove()
    assert sum(calls) == 8
    assert_same(first, again)


PAIRS = [[30, 24], [18, 18], [24, 30], [30, 24], [18, 18], [30, 24]]


@pytest.mark.parametrize(
    ("budget", "window", "passes"),
    [
        (0, 0, [[0], [1], [2], [3], [4], [5]]),
        (54, 0, [[0], [1], [2], [3], [4], [5]]),
        (108, 0, [[0, 3], [1, 4], [2], [5]]),
        (162, 0, [[0, 3, 5], [1, 4], [2]]),
        (20, 0, [[0], [1], [2], [3], [4], [5]]),
        (120, 40, [[0], [1], [2], [3], [4], [5]]),
        (160, 40, [[0, 1], [2, 3], [4, 5]]),
    ],
)
def test_examples_of_equal_lengths_share_a_pass_within_the_budget(budget, window, passes):
    assert plan_passes(PAIRS, budget, window) == passes


def test_a_pair_above_the_budget_goes_song_by_song_and_a_song_as_it_is(accelerator):
    def is_split(frames, lengths):
        return choose_plan(accelerator, replace(CFG, frames_per_device=frames), lengths).is_split

    assert is_split(53, PAIRS)
    assert not is_split(54, PAIRS)
    assert not is_split(0, PAIRS)
    assert not is_split(10, [[30], [18]])
