"""Sliders: the optimum in closed form, the frozen network as target, strengths row by row, and a whole run."""

import json
from dataclasses import replace

import pytest
import torch
from support.objectives import random_outputs
from support.slider_world import GaussianModel, mean_of
from support.training import batch, identity

from diffdpo.errors import ConfigError
from diffdpo.models import MODELS
from diffdpo.models.adapters import merge_adapter, save_adapter
from diffdpo.objectives import OBJECTIVES
from diffdpo.training.config import LoraConfig, ReferenceConfig, TrainConfig, check_slider
from diffdpo.training.references import AdapterOff
from diffdpo.training.row_scale import scale_rows
from diffdpo.training.session import optimize
from diffdpo.training.setup import add_lora
from diffdpo.training.step import outputs, row_velocity, sample_noise, stack_rows
from diffdpo.types import Batch, Row

pytestmark = pytest.mark.slow

TEXTS = ("piano", "strings", "drums", "flute")
ETA = 1.5


def gaussian_batch(model, scales=(1.0, -1.0, 0.5, -2.0), texts=TEXTS, positions=(0, 1, 2, 3)):
    """Songs of neutral prompts with the contrast loud and quiet, one strength each."""
    frames = [10, 7, 10, 4]

    def rows(word):
        return tuple(
            (Row(embedding={"mean": mean_of(f"{text} {word}")}, frames=length),)
            for text, length in zip(texts, frames, strict=True)
        )

    generator = torch.Generator().manual_seed(5)
    return Batch(
        latents=torch.randn(4, 1, 10, 3, generator=generator),
        frames=torch.tensor(frames)[:, None],
        rows=rows(""),
        plus_rows=rows("loud"),
        minus_rows=rows("quiet"),
        scale=torch.tensor(scales),
        positions=positions,
        weight=torch.ones(4),
    )


@pytest.fixture
def gaussian():
    model = GaussianModel()
    add_lora(model.network, LoraConfig(rank=4, alpha=4.0), model.lora_targets, seed=0)
    return model


@pytest.fixture(scope="module")
def tiny(bundle):
    """A policy whose adapter is not the identity."""
    model = MODELS["tiny"](bundle=str(bundle)).load()
    add_lora(model.network, LoraConfig(rank=4), model.lora_targets, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


def contrast_batch(scale=(1.0, -1.0, 1.0, -1.0)):
    """The batch of other tests, each example between its neighbours' prompts."""
    data = batch(1)
    return replace(
        data, plus_rows=data.rows[1:] + data.rows[:1], minus_rows=data.rows[2:] + data.rows[:2],
        scale=torch.tensor(scale),
    )  # fmt: skip


SHIFT = ETA * (mean_of("loud") - mean_of("quiet"))
"""The contrast is the same for all neutral prompts, so that one adapter can reach the target everywhere."""


def slider_loss(model, data, step=0):
    """The loss and the share of the target's shift that is not reached, under the noise of a step."""
    data = replace(data, positions=tuple(range(4 * step, 4 * step + 4)))
    objective, noise = OBJECTIVES["slider"](eta=ETA), sample_noise(data, TrainConfig(), seed=3)
    result = objective(outputs(model, model.network, AdapterOff(identity), data, objective, noise))
    return result.loss.mean(), float((result.metrics["error"] / result.metrics["shift"]).mean())


def test_the_optimum_shifts_the_mean_by_eta_times_strength_times_the_contrast(gaussian):
    """The adapter that adds SHIFT to the mean has loss 0, which no loss is below, and songs of the shifted mean."""
    layer = gaussian.network.mean
    with torch.no_grad():
        layer.lora_A["default"].weight.zero_()[0, -1] = 1.0
        layer.lora_B["default"].weight.zero_()[:, 0] = SHIFT
    data = gaussian_batch(gaussian)
    loss, _ = slider_loss(gaussian, data)
    gradients = torch.autograd.grad(loss, [p for p in gaussian.network.parameters() if p.requires_grad])
    assert loss < 1e-10
    assert all(g.abs().max() < 1e-5 for g in gradients)
    x, t = torch.randn(1, 10, 3, generator=torch.Generator().manual_seed(9)), torch.tensor([0.6])
    plain = GaussianModel()
    for strength in (-1.0, 0.5, 2.0):
        scale_rows(gaussian.network, torch.tensor([strength]))
        condition = {"mean": mean_of("piano")[None]}
        own = gaussian.velocity(gaussian.network, x, t, condition, torch.tensor([10]))
        shifted = {"mean": (mean_of("piano") + strength * SHIFT)[None]}
        expected = plain.velocity(plain.network, x, t, shifted, torch.tensor([10]))
        assert torch.allclose(own, expected, atol=1e-5)


def test_gradient_steps_reach_it(gaussian):
    optimizer = torch.optim.Adam([p for p in gaussian.network.parameters() if p.requires_grad], lr=5e-2)
    data = gaussian_batch(gaussian)
    for step in range(50):
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).roll(step)
        slider_loss(gaussian, replace(data, scale=signs), step)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert slider_loss(gaussian, data, 1000)[1] < 0.1


def test_the_target_is_that_of_the_frozen_network(gaussian):
    """v(neutral) + eta s [v(plus) - v(minus)], whatever the adapter has become."""
    torch.nn.init.normal_(gaussian.network.mean.lora_B["default"].weight)
    data, objective = gaussian_batch(gaussian), OBJECTIVES["slider"](eta=ETA)
    noise = sample_noise(data, TrainConfig(), seed=3)
    values = outputs(gaussian, gaussian.network, AdapterOff(identity), data, objective, noise)
    plain = GaussianModel()
    rows = stack_rows(plain, data, noise)
    neutral, plus, minus = (
        row_velocity(plain, plain.network, rows, n) for n in ("reference", "plus", "minus")
    )
    target = neutral + ETA * data.scale[:, None, None] * (plus - minus)
    assert torch.allclose(values.velocities.reference[:, 0], neutral, atol=1e-6)
    assert torch.allclose(values.velocities.plus[:, 0], plus, atol=1e-6)
    assert torch.allclose(values.velocities.minus[:, 0], minus, atol=1e-6)
    mask = values.mask[:, 0, :, None]
    error = ((values.velocities.policy[:, 0] - target) ** 2).where(mask, 0).sum((1, 2)) / (
        3 * mask.sum((1, 2))
    )
    assert torch.allclose(objective(values).loss, error, rtol=1e-5)
    frozen = [getattr(values.velocities, name) for name in ("reference", "plus", "minus")]
    assert not any(velocity.requires_grad for velocity in frozen)


def test_no_gradient_flows_into_the_target():
    objective = OBJECTIVES["slider"]()
    values = random_outputs(objective)
    parts = {
        n: getattr(values.velocities, n).detach().requires_grad_() for n in ("reference", "plus", "minus")
    }
    values = replace(values, velocities=replace(values.velocities, **parts))
    gradients = torch.autograd.grad(
        objective(values).loss.sum(), [values.velocities.policy, *parts.values()], allow_unused=True
    )
    assert gradients[0].abs().sum() > 0
    assert gradients[1:] == (None, None, None)


def test_exchanging_plus_and_minus_is_changing_the_sign_of_the_strength():
    objective = OBJECTIVES["slider"](eta=2.0)
    values = random_outputs(objective)
    v = values.velocities
    exchanged = replace(values, velocities=replace(v, plus=v.minus, minus=v.plus))
    opposite = replace(values, scale=-values.scale)
    assert torch.equal(objective(exchanged).loss, objective(opposite).loss)


def test_at_strength_0_the_network_is_the_base_and_at_1_what_it_was(tiny):
    data = contrast_batch()
    noise = sample_noise(data, TrainConfig(), seed=3)
    rows = stack_rows(tiny, replace(data, scale=None), noise)
    with torch.no_grad():
        plain = row_velocity(tiny, tiny.network, rows)
        zero = row_velocity(tiny, tiny.network, replace(rows, scale=torch.zeros(4)))
        one = row_velocity(tiny, tiny.network, replace(rows, scale=torch.ones(4)))
        scale_rows(tiny.network, None)
        again = row_velocity(tiny, tiny.network, rows)
        with AdapterOff(identity).of(tiny.network) as network:
            base = row_velocity(tiny, network, rows)
    assert torch.equal(zero, base)
    assert torch.equal(one, plain)
    assert torch.equal(again, plain)
    assert not torch.allclose(plain, base, atol=1e-4)


def test_the_strength_of_a_row_is_that_of_an_adapter_that_samples(tiny, bundle, tmp_path):
    """Row by row in one batch, as the adapter merged at that strength."""
    save_adapter(tiny.network, tiny.network.state_dict(), tmp_path / "adapter")
    strengths = [1.0, -1.0, 0.5, -2.0]
    data = contrast_batch(strengths)
    rows = stack_rows(tiny, data, sample_noise(data, TrainConfig(), seed=3))
    with torch.no_grad():
        together = row_velocity(tiny, tiny.network, rows)
    scale_rows(tiny.network, None)
    for row, strength in enumerate(strengths):
        model = MODELS["tiny"](bundle=str(bundle)).load()
        merge_adapter(model.network, tmp_path / "adapter", strength)
        with torch.no_grad():
            merged = row_velocity(model, model.network, rows, "merged")
        assert torch.allclose(together[row], merged[row], atol=1e-5 * float(merged.abs().max()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_example_has_the_gradient_it_has_alone_whatever_the_strengths_beside_it(tiny, checkpointing):
    """Also where a checkpointed backward pass runs forward once more."""
    if checkpointing:
        tiny.network.enable_gradient_checkpointing()
    tiny.network.train()
    data, objective = contrast_batch(), OBJECTIVES["slider"]()
    noise = sample_noise(data, TrainConfig(), seed=3)
    values = outputs(tiny, tiny.network, AdapterOff(identity), data, objective, noise)
    objective(values).loss.sum().backward()
    together = {n: p.grad.clone() for n, p in tiny.network.named_parameters() if p.grad is not None}
    tiny.network.zero_grad()
    for index in range(4):
        one = select(data, index)
        own_noise = sample_noise(one, TrainConfig(), seed=3)
        own = outputs(tiny, tiny.network, AdapterOff(identity), one, objective, own_noise)
        objective(own).loss.sum().backward()
    alone = {n: p.grad.clone() for n, p in tiny.network.named_parameters() if p.grad is not None}
    tiny.network.zero_grad()
    scale_rows(tiny.network, None)
    tiny.network.disable_gradient_checkpointing()
    assert together.keys() == alone.keys()
    size = max(float(g.abs().max()) for g in together.values())
    assert size > 0
    for name in together:
        assert torch.allclose(together[name], alone[name], atol=1e-5 * size), name


def select(data, index):
    """One example of a contrast batch."""
    length = int(data.frames[index, 0])
    return replace(
        data,
        latents=data.latents[index : index + 1, :, :length],
        frames=data.frames[index : index + 1],
        scale=data.scale[index : index + 1],
        weight=data.weight[index : index + 1],
        positions=data.positions[index : index + 1],
        **{name: getattr(data, name)[index : index + 1] for name in ("rows", "plus_rows", "minus_rows")},
    )


@pytest.mark.parametrize(
    ("cfg", "match"),
    [
        (TrainConfig(), "train.lora.rank"),
        (TrainConfig(lora=LoraConfig(peft={"use_dora": True})), "use_dora"),
        (TrainConfig(lora=LoraConfig(), reference=ReferenceConfig(kind="ema")), "reference.kind=ema"),
    ],
)
def test_what_cannot_be_a_slider_is_refused(cfg, match):
    with pytest.raises(ConfigError, match=match):
        check_slider(cfg, OBJECTIVES["slider"]())
    check_slider(cfg, OBJECTIVES["dpo"]())


def test_strengths_without_an_adapter_are_refused():
    with pytest.raises(ConfigError, match="set train"):
        scale_rows(GaussianModel().network, torch.tensor([1.0, -1.0]))
    scale_rows(GaussianModel().network, torch.ones(2))


class GaussianExamples:
    """The batch of the closed form as a data set."""

    def __init__(self, model):
        self.data = gaussian_batch(model)

    def __len__(self):
        return 4

    def example(self, index, position):
        return index, position

    def collate(self, examples, positions):
        index = [i for i, _ in examples]
        data = self.data
        rows = {n: tuple(getattr(data, n)[i] for i in index) for n in ("rows", "plus_rows", "minus_rows")}
        scale = torch.tensor([1.0 if p % 2 else -1.0 for p in positions])
        return replace(
            data, latents=data.latents[index], frames=data.frames[index], weight=data.weight[index],
            positions=tuple(positions), scale=scale, **rows,
        )  # fmt: skip


def run(folder, **changes):
    settings = {"steps": 6, "global_batch": 4, "per_device": 4, "learning_rate": 1e-2, "time_bins": 2}
    cfg = TrainConfig(lora=LoraConfig(rank=2), trackers=[], save_every=3, **{**settings, **changes})
    model = GaussianModel()
    optimize(model, GaussianExamples(model), OBJECTIVES["slider"](), cfg, out=folder, objective_name="slider")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {n: p.detach().clone() for n, p in model.network.named_parameters()}, rows


def test_a_run_resumes_bit_for_bit_and_does_not_depend_on_its_split(tmp_path):
    whole, rows = run(tmp_path / "whole")
    run(tmp_path / "parts", steps=3)
    resumed, _ = run(tmp_path / "parts")
    assert {"loss", "error", "shift", "cosine", "error/t0.50-1.00"} <= rows[-1].keys()
    for changes in ({"per_device": 1}, {"split_backward": True}, {"gradient_checkpointing": True}):
        other, _ = run(tmp_path / "-".join(changes), **changes)
        assert all(torch.allclose(whole[name], other[name], atol=1e-6) for name in whole), changes
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
