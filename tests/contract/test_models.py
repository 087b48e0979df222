"""What trainer and sampler rely on, for every registered song model (docs/decisions/0009-protocol-2.md).

A model has one fixture file, tests/contract/models/NAME.py. The models of this package and those that other
packages announce as entry points are tested alike; one such package is on the path here.
"""

import hashlib
import re
from dataclasses import replace

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.loaders import PeftAdapterMixin
from support.model_contract import (
    FRAMES,
    LENGTH,
    MODEL_FIXTURES,
    STRANGER,
    TESTS,
    Inputs,
    distance,
    draw,
    model_fixture,
    one_line_error,
)

from diffdpo.data.plans import plan_digest
from diffdpo.errors import DataError
from diffdpo.flow import mask_from_frames
from diffdpo.models.adapter_config import block_names
from diffdpo.models.base import OPTIONAL, Inpaints, Plans, Prepares, SongModel, require, supports, take
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.sampling.activations import (
    PooledActivations,
    check_site,
    hook_blocks,
    move_along,
    projection_sites,
)
from diffdpo.sampling.windowed import WindowedModel
from diffdpo.types import Row
from diffdpo.windows import Window

NONE, FIRST = torch.tensor([False, False, False]), torch.tensor([True, False, False])


def test_the_network_is_what_trainers_need(subject):
    network, spec = subject.model.network, subject.model.spec
    assert isinstance(subject.model, SongModel)
    assert isinstance(network, ModelMixin)
    assert isinstance(network, ConfigMixin)
    assert isinstance(network, PeftAdapterMixin)
    assert {type(module).__name__ for module in network.modules()} >= set(network._repeated_blocks) > set()
    assert spec.frames(1e-6) >= 1
    times = spec.times or (1.0, 0.0)
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert list(times) == sorted(set(times), reverse=True)
    bare, whole = ((10.0 + extra) * spec.frames_per_second for extra in (0.0, spec.headroom_s))
    assert spec.frames(10.0) == pytest.approx(min(whole, max(bare, spec.max_frames)), abs=spec.multiple)


def test_a_song_in_a_padded_batch_is_the_song_alone(subject):
    inputs = subject.inputs()
    together = subject.velocity(inputs)
    assert together.shape == inputs.x.shape
    for i, (row, end) in enumerate(zip(subject.rows(), FRAMES, strict=True)):
        condition = subject.model.condition([row], end)
        alone = Inputs(inputs.x[i : i + 1, :end], inputs.t[i : i + 1], condition, inputs.frames[i : i + 1])
        assert distance(together[i, :end], subject.velocity(alone)[0]) <= 1e-5
        assert not together[i, end:].any()


def test_any_callable_may_stand_around_the_network(subject):
    inputs = subject.inputs()
    wrapped = subject.velocity(inputs, lambda *args, **named: subject.model.network(*args, **named))
    assert torch.equal(wrapped, subject.velocity(inputs))


def test_blocks_and_heads_can_be_read_and_steered(subject):
    inputs, network = subject.inputs(), subject.model.network
    plain, numbers = subject.velocity(inputs), range(len(block_names(network)))
    sites = projection_sites(network)
    assert sites or not any("attn" in name for name, _ in network.named_modules())
    for site in ("", *sites):
        check_site(network, site, "site")
        reader = PooledActivations(numbers, inputs.frames, LENGTH)
        with hook_blocks([network], reader.actions(), "blocks", site):
            assert torch.equal(subject.velocity(inputs), plain)
        features = reader.features(len(inputs.frames))
        assert features.isfinite().all()
        # A song's activations are its own: those of the song alone, whatever stands beside it in the batch.
        first = Inputs(
            inputs.x[:1], inputs.t[:1], subject.model.condition(subject.rows()[:1], LENGTH), inputs.frames[:1]
        )
        alone = PooledActivations(numbers, inputs.frames[:1], LENGTH)
        with hook_blocks([network], alone.actions(), "blocks", site):
            subject.velocity(first)
        assert distance(features[:1], alone.features(1)) <= 1e-5
        for strength in (0.0, 1.0):
            move = move_along(features[0, -1].float(), strength)
            with hook_blocks([network], {numbers[-1]: move}, "blocks", site):
                moved = subject.velocity(inputs)
            assert (distance(moved, plain) > 1e-4) == bool(strength), (site, strength)
        assert torch.equal(subject.velocity(inputs), plain)


def test_a_velocity_is_one_forward_of_the_network(fresh):
    inputs, calls = fresh.inputs(), []
    fresh.model.network.register_forward_hook(lambda *_: calls.append(1))
    fresh.velocity(inputs)
    assert len(calls) == 1
    if supports(fresh.model, Prepares):
        prepared = fresh.model.prepare(fresh.model.network, inputs.condition, inputs.frames)
        calls.clear()
        fresh.velocity(inputs._replace(condition=prepared))
        assert len(calls) == 1


def test_rows_may_come_in_any_order(subject):
    inputs, order = subject.inputs(), torch.tensor([2, 0, 1])
    assert all(len(tensor) == 3 and tensor.device.type == "cpu" for tensor in inputs.condition.values())
    turned = Inputs(inputs.x[order], inputs.t[order], take(inputs.condition, order), inputs.frames[order])
    assert distance(subject.velocity(turned), subject.velocity(inputs)[order]) <= 1e-5


def test_time_matters(subject):
    inputs = subject.inputs()
    assert distance(subject.velocity(inputs._replace(t=1 - inputs.t)), subject.velocity(inputs)) > 1e-3


def test_a_row_may_ask_for_more_or_fewer_frames_than_there_are(subject):
    rows = [Row(embedding=subject.embed(0), frames=frames) for frames in (LENGTH + 7, 5, LENGTH)]
    inputs = subject.inputs()._replace(condition=subject.model.condition(rows, LENGTH))
    assert subject.velocity(inputs).isfinite().all()


def test_a_part_is_dropped_in_its_row_alone(subject):
    model, inputs = subject.model, subject.inputs()
    plain = subject.velocity(inputs)
    assert set(model.unconditional) <= set(model.parts)
    for part in model.parts:
        kept, dropped = (model.without(inputs.condition, part, where) for where in (NONE, FIRST))
        assert torch.equal(subject.velocity(inputs._replace(condition=kept)), plain), part
        moved = subject.velocity(inputs._replace(condition=dropped))
        assert distance(moved[0], plain[0]) > 1e-4, part
        assert distance(moved[1:], plain[1:]) <= 1e-5, part
        twice = model.without(dropped, part, FIRST)
        assert torch.equal(subject.velocity(inputs._replace(condition=twice)), moved), part


def test_an_unknown_part_is_refused(subject):
    part = subject.model.parts[0]
    with one_line_error(f"no part '{part}x'. Did you mean '{part}'"):
        subject.model.without(subject.inputs().condition, f"{part}x", NONE)


def test_what_is_kept_of_a_song_is_shown_and_nothing_else(subject):
    model, inputs = subject.model, subject.inputs()
    if not supports(model, Inpaints):
        with one_line_error("cannot in-paint"):
            require(model, Inpaints)
        return
    plain, song = subject.velocity(inputs), draw(*inputs.x.shape, seed=1)
    keep = mask_from_frames(torch.tensor([12, 9, 4]), LENGTH)
    none, shown, hidden = (
        model.with_context(inputs.condition, latents, mask)
        for latents, mask in (
            (song, torch.zeros_like(keep)),
            (song, keep),
            (song.where(keep[..., None], torch.nan), keep),
        )
    )
    assert torch.equal(subject.velocity(inputs._replace(condition=none)), plain)
    moved = subject.velocity(inputs._replace(condition=shown))
    assert all(distance(moved[i], plain[i]) > 1e-4 for i in range(3))
    assert torch.equal(subject.velocity(inputs._replace(condition=hidden)), moved)
    for part in model.parts:
        before = model.with_context(model.without(inputs.condition, part, FIRST), song, keep)
        after = model.without(shown, part, FIRST)
        one, other = (subject.velocity(inputs._replace(condition=c)) for c in (before, after))
        assert torch.equal(one, other), part


def test_a_prepared_condition_gives_the_same_velocity_in_any_order(subject):
    model, inputs = subject.model, subject.inputs()
    if not supports(model, Prepares):
        with one_line_error("cannot prepare"):
            require(model, Prepares)
        return
    with torch.no_grad():
        prepared = model.prepare(model.network, inputs.condition, inputs.frames)
    plain, order = subject.velocity(inputs), torch.tensor([1, 2, 0])
    assert distance(subject.velocity(inputs._replace(condition=prepared)), plain) <= 1e-5
    turned = Inputs(inputs.x[order], inputs.t[order], take(prepared, order), inputs.frames[order])
    assert distance(subject.velocity(turned), plain[order]) <= 1e-5


def test_a_plan_decides_and_one_of_another_planner_is_refused(subject):
    model, inputs = subject.model, subject.inputs()
    if not supports(model, Plans):
        with one_line_error("cannot plan songs"):
            require(model, Plans)
        return
    prompt, generator = subject.fixture.prompts[0], torch.Generator
    plans = [model.plan(prompt, LENGTH, generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert all(torch.equal(plans[1].tensors[name], tensor) for name, tensor in plans[0].tensors.items())
    row = Row(embedding=model.embed(prompt) | model.embed_plan(plans[2]), frames=LENGTH)
    other = inputs._replace(condition=model.condition([row, *subject.rows()[1:]], LENGTH))
    moved, plain = subject.velocity(other), subject.velocity(inputs)
    assert distance(moved[0], plain[0]) > 1e-4
    assert distance(moved[1:], plain[1:]) <= 1e-5
    foreign = replace(plans[0], planner="another")
    with one_line_error(model.planner):
        model.embed_plan(foreign)


def test_a_cached_plan_of_another_planner_is_refused_too(subject, tmp_path):
    model = subject.model
    if not supports(model, Plans):
        return
    plan = model.plan(subject.fixture.prompts[0], LENGTH, torch.Generator().manual_seed(0))
    EmbeddingStore(model, tmp_path).embed_plan(plan)
    foreign = replace(plan, planner="another")
    for path in tmp_path.iterdir():  # what a run with the other planner would have left here
        name = hashlib.sha256(f"{model.fingerprint}|{plan_digest(foreign)}".encode()).hexdigest()
        path.rename(tmp_path / f"{name}.safetensors")
    with one_line_error(model.planner):
        EmbeddingStore(model, tmp_path).embed_plan(foreign)


def test_a_window_is_a_slice_of_its_song_or_refused(subject):
    model, whole = subject.model, subject.rows()[0]
    window = Row(embedding=whole.embedding, frames=20, first_frame=10, song_frames=LENGTH)
    if not subject.fixture.takes_windows:
        with one_line_error():
            model.condition([window], 20)
        return
    song, part = model.condition([whole], LENGTH), model.condition([window], 20)
    for name in subject.fixture.on_frames:
        assert song[name][:, 10:30].any(), f"{name}: nothing there to compare"
        assert torch.equal(part[name], song[name][:, 10:30]), name
    inputs = Inputs(draw(1, 20, model.spec.channels), torch.tensor([0.5]), part, torch.tensor([20]))
    assert subject.velocity(inputs).isfinite().all()


def test_a_wrapper_supports_what_the_model_in_it_supports(subject):
    windows = (Window(0, 20, 0, 16), Window(12, 32, 16, 32))
    windowed = WindowedModel(base_model=subject.model, windows=windows, fade=4, batch=2)
    assert isinstance(windowed, SongModel)
    for protocol in OPTIONAL:
        assert supports(subject.model, protocol) or not supports(windowed, protocol)
    assert supports(windowed, Inpaints) == supports(subject.model, Inpaints)


def test_checkpointed_gradients_are_the_plain_ones(fresh):
    """With a forward of other songs between a forward and its backward, as a reference of the same network has."""
    model, inputs, network = fresh.model, fresh.inputs(), fresh.model.network
    order = torch.tensor([1, 2, 0])
    others = Inputs(inputs.x[order], inputs.t[order], take(inputs.condition, order), inputs.frames[order])

    def gradients():
        network.zero_grad()
        v = model.velocity(network, *inputs)
        model.velocity(network, *others)
        v.square().mean().backward()
        return {name: parameter.grad for name, parameter in network.named_parameters()}

    network.requires_grad_(True).train()
    plain = gradients()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in plain.values())
    network.enable_gradient_checkpointing()
    scale = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in gradients().items():
        assert (gradient - plain[name]).abs().max() <= 1e-6 * scale, name


def test_the_precision_of_the_latents_does_not_round_the_time(subject):
    """0.7 and 0.7008 are one number in bf16. The network stands still, so only a rounded time can hide them."""
    inputs = subject.inputs()

    def wide(*args, **named):
        args, named = [up(value) for value in args], {name: up(value) for name, value in named.items()}
        return subject.model.network(*args, **named)

    def up(value):
        half = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
        return value.float() if half else value

    near, far = (
        subject.velocity(inputs._replace(x=inputs.x.bfloat16(), t=torch.full((3,), t)), wide)
        for t in (0.7, 0.7008)
    )
    assert not torch.equal(near.float(), far.float())


def test_a_time_of_low_precision_is_refused_or_taken_for_what_it_says(subject):
    inputs = subject.inputs()
    rough = inputs.t.bfloat16()
    try:
        v = subject.velocity(inputs._replace(t=rough))
    except (DataError, ValueError):
        return
    assert distance(v, subject.velocity(inputs._replace(t=rough.float()))) <= 1e-6


def test_a_network_of_half_precision_computes_in_it(fresh):
    inputs = fresh.inputs()
    fresh.model.network.to(torch.bfloat16)
    v = fresh.velocity(inputs._replace(x=inputs.x.bfloat16()))
    assert v.dtype == torch.bfloat16
    assert v.isfinite().all()


def test_a_model_without_a_fixture_is_a_failure_that_says_what_to_write():
    with pytest.raises(pytest.fail.Exception, match=r"write tests/contract/models/nobody\.py with FIXTURE"):
        model_fixture("nobody")


def test_the_how_to_shows_the_files_that_are_tested_here():
    page = (TESTS.parent / "docs" / "howto" / "add-a-model.md").read_text()
    head, network, model, configuration, _, fixture = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for shown, path in (
        ([head, network, model, configuration], STRANGER / "stranger" / "__init__.py"),
        ([fixture], MODEL_FIXTURES / "stranger.py"),
    ):
        lines = [line for line in "\n".join(shown).splitlines() if line]
        assert lines == [line for line in path.read_text().splitlines() if line]
