"""What trainer and sampler rely on (docs/decisions/0009-protocol-2.md), for every registered song model.

A model has one fixture file, tests/contract/models/NAME.py. The models of this package and those that other packages
announce as entry points are tested alike; one such package is on the path here.
"""

import gc
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.loaders import PeftAdapterMixin
from support.contract import STRANGER, ModelFixture, model_fixture, on_path

from diffdpo.errors import ConfigError, DataError
from diffdpo.flow import mask_from_frames
from diffdpo.models import MODELS
from diffdpo.models.adapters import save_adapter
from diffdpo.models.base import OPTIONAL, Inpaints, Plans, Prepares, SongModel, require, supports, take
from diffdpo.models.checkpoints import save_network
from diffdpo.models.embeddings import EmbeddingStore, read_embedding, write_embedding
from diffdpo.sampling.windowed import Windowed
from diffdpo.training.config import LoraConfig
from diffdpo.training.setup import ADAPTABLE, add_lora
from diffdpo.types import Clip, Row
from diffdpo.windows import Window

with on_path(STRANGER):
    NAMES = sorted(MODELS)
FRAMES = (40, 23, 9)
LENGTH = max(FRAMES)
NONE, FIRST = torch.tensor([False, False, False]), torch.tensor([True, False, False])


class Inputs(NamedTuple):
    """What `velocity` takes behind the network."""

    x: torch.Tensor
    t: torch.Tensor
    condition: dict[str, torch.Tensor]
    frames: torch.Tensor


@dataclass(frozen=True)
class Subject:
    """A model under test."""

    name: str
    fixture: ModelFixture
    folder: Path
    model: SongModel

    def load(self, **arguments: str) -> SongModel:
        return self.fixture.load(self.folder, **arguments)

    def embed(self, number: int, seed: int = 0) -> dict[str, torch.Tensor]:
        """Of a prompt, with a plan where the model plans."""
        model, prompt = self.model, self.fixture.prompts[number]
        embedding = model.embed(prompt)
        if supports(model, Plans):
            plan = model.plan(prompt, FRAMES[number], torch.Generator().manual_seed(seed))
            embedding = embedding | model.embed_plan(plan)
        return embedding

    def rows(self) -> list[Row]:
        return [Row(embedding=self.embed(i), frames=frames) for i, frames in enumerate(FRAMES)]

    def inputs(self) -> Inputs:
        """Three songs in one batch, NaN behind the end of each."""
        frames = torch.tensor(FRAMES)
        x = draw(3, LENGTH, self.model.spec.channels)
        x = x.where(mask_from_frames(frames, LENGTH)[..., None], torch.nan)
        return Inputs(x, torch.tensor([0.3, 0.8, 0.55]), self.model.condition(self.rows(), LENGTH), frames)

    @torch.no_grad()
    def velocity(self, inputs: Inputs, network=None) -> torch.Tensor:
        return self.model.velocity(self.model.network if network is None else network, *inputs)


@pytest.fixture(scope="module", autouse=True)
def package_of_a_stranger():
    with on_path(STRANGER):
        yield


@pytest.fixture(params=NAMES)
def subject(request, tmp_path_factory):
    fixture = model_fixture(request.param)
    folder = tmp_path_factory.getbasetemp() / "contract" / request.param
    folder.mkdir(parents=True, exist_ok=True)
    return Subject(request.param, fixture, folder, fixture.load(folder))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(one, two):
    """Relative to the largest element."""
    return float((one - two).abs().max() / two.abs().max())


@contextmanager
def refused(match="", kind=DataError):
    with pytest.raises(kind, match=match) as error:
        yield
    assert "\n" not in str(error.value)


def test_the_network_is_what_trainers_need(subject):
    network, spec = subject.model.network, subject.model.spec
    assert isinstance(subject.model, SongModel)
    assert isinstance(network, ModelMixin)
    assert isinstance(network, ConfigMixin)
    assert isinstance(network, PeftAdapterMixin)
    assert {type(module).__name__ for module in network.modules()} >= set(network._repeated_blocks) > set()
    assert spec.frames(1e-6) >= 1
    assert spec.frames(10.0) == pytest.approx(
        (10.0 + spec.headroom_s) * spec.frames_per_second, abs=spec.multiple
    )


def test_a_configuration_names_the_weights_that_rounds_replace(subject):
    assert is_dataclass(MODELS[subject.name])
    assert {field.name for field in fields(MODELS[subject.name])} >= {"network", "adapter"}


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


def test_a_velocity_is_one_forward_of_the_network(subject):
    inputs, calls = subject.inputs(), []
    subject.model.network.register_forward_hook(lambda *_: calls.append(1))
    subject.velocity(inputs)
    assert len(calls) == 1
    if supports(subject.model, Prepares):
        prepared = subject.model.prepare(subject.model.network, inputs.condition, inputs.frames)
        calls.clear()
        subject.velocity(inputs._replace(condition=prepared))
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
    with refused(f"no part '{part}x'. Did you mean '{part}'"):
        subject.model.without(subject.inputs().condition, f"{part}x", NONE)


def test_what_is_kept_of_a_song_is_shown_and_nothing_else(subject):
    model, inputs = subject.model, subject.inputs()
    if not supports(model, Inpaints):
        with refused("cannot continue, extend or edit"):
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
        with refused("cannot prepare"):
            require(model, Prepares)
        return
    with torch.no_grad():
        prepared = model.prepare(model.network, inputs.condition, inputs.frames)
    plain, order = subject.velocity(inputs), torch.tensor([1, 2, 0])
    assert distance(subject.velocity(inputs._replace(condition=prepared)), plain) <= 1e-5
    turned = Inputs(inputs.x[order], inputs.t[order], take(prepared, order), inputs.frames[order])
    assert distance(subject.velocity(turned), plain[order]) <= 1e-5


def test_an_embedding_survives_its_file_bit_for_bit(subject, tmp_path):
    for number in range(3):
        embedding = subject.embed(number)
        write_embedding(tmp_path / "embedding.safetensors", embedding)
        again = read_embedding(tmp_path / "embedding.safetensors")
        assert again.keys() == embedding.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in embedding.items())
        assert all(again[name].dtype == tensor.dtype for name, tensor in embedding.items())


def test_without_encoders_stored_prompts_and_the_null_still_work(subject, tmp_path):
    model, prompts = subject.model, subject.fixture.prompts
    store = EmbeddingStore(model, tmp_path)
    first = [store.embed(prompt) for prompt in prompts]
    model.place("encoders", None)
    again = [EmbeddingStore(model, tmp_path).embed(prompt) for prompt in prompts]
    assert all(torch.equal(b[name], a[name]) for a, b in zip(first, again, strict=True) for name in a)
    rows = [Row(embedding=e, frames=n) for e, n in zip(again, FRAMES, strict=True)]
    condition = model.condition(rows, LENGTH)
    for part in model.unconditional:
        condition = model.without(condition, part, ~NONE)
    inputs = Inputs(
        draw(3, LENGTH, model.spec.channels), torch.full((3,), 0.5), condition, torch.tensor(FRAMES)
    )
    assert subject.velocity(inputs).isfinite().all()
    with refused("new"):
        store.embed(replace(prompts[0], id="new", text="something else"))


def test_encoders_and_codec_leave_no_network_behind(subject, tmp_path):
    before = {id(module) for module in modules()}
    model = subject.fixture.load(tmp_path)
    model.embed(subject.fixture.prompts[0])
    model.decode(draw(8, model.spec.channels))
    model.place("encoders", None)
    model.place("codec", None)
    gc.collect()
    own = {id(module) for module in model.network.modules()}
    left = [type(module).__name__ for module in modules() if id(module) not in before | own]
    assert not left


def test_the_fingerprint_is_known_without_loading_anything(subject):
    model, before = subject.load(), len(modules())
    fingerprint = model.fingerprint
    assert fingerprint
    assert len(modules()) <= before
    assert subject.load().fingerprint == fingerprint
    model.place("encoders", None)
    assert model.fingerprint == fingerprint


def modules():
    """All networks in memory, and their parts."""
    return [value for value in gc.get_objects() if issubclass(type(value), torch.nn.Module)]


def test_a_plan_decides_and_one_of_another_planner_is_refused(subject):
    model, inputs = subject.model, subject.inputs()
    if not supports(model, Plans):
        with refused("cannot plan songs"):
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
    with refused(model.planner):
        model.embed_plan(replace(plans[0], planner="another"))


def test_a_window_is_a_slice_of_its_song_or_refused(subject):
    model, whole = subject.model, subject.rows()[0]
    window = Row(embedding=whole.embedding, frames=20, first_frame=10, song_frames=LENGTH)
    if not subject.fixture.takes_windows:
        with refused():
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
    windowed = Windowed(wrapped=subject.model, windows=windows, fade=4, batch=2)
    assert isinstance(windowed, SongModel)
    for protocol in OPTIONAL:
        assert supports(subject.model, protocol) or not supports(windowed, protocol)
    assert supports(windowed, Inpaints) == supports(subject.model, Inpaints)


def test_checkpointed_gradients_are_the_plain_ones(subject):
    """With a forward of other songs between a forward and its backward, as a reference of the same network has."""
    model, inputs, network = subject.model, subject.inputs(), subject.model.network
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


def test_a_network_of_half_precision_computes_in_it(subject):
    inputs = subject.inputs()
    subject.model.network.to(torch.bfloat16)
    v = subject.velocity(inputs._replace(x=inputs.x.bfloat16()))
    assert v.dtype == torch.bfloat16
    assert v.isfinite().all()


def test_adapters_start_as_the_identity_and_take_the_gradient(subject):
    model, inputs = subject.model, subject.inputs()
    before = subject.velocity(inputs)
    layers = [name for name, module in model.network.named_modules() if isinstance(module, ADAPTABLE)]
    for target in model.lora_targets:
        assert any(name == target or name.endswith(f".{target}") for name in layers), target
    add_lora(model.network, LoraConfig(rank=2), model.lora_targets, seed=0)
    assert torch.equal(subject.velocity(inputs), before)
    model.velocity(model.network, *inputs).square().mean().backward()
    moved = {n for n, p in model.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {n for n, _ in model.network.named_parameters() if ".lora_B." in n}


def test_lora_targets_that_match_nothing_are_refused(subject):
    target = subject.model.lora_targets[0]
    with refused(f"no layer '{target}x'", ConfigError):
        add_lora(subject.model.network, LoraConfig(targets=[f"{target}x"]), (), seed=0)


def write_adapter(subject, folder, seed):
    """An adapter with random ups and downs; the model that has it."""
    model = subject.load()
    add_lora(model.network, LoraConfig(rank=3, alpha=5.0), model.lora_targets, seed)
    for number, (name, parameter) in enumerate(model.network.named_parameters()):
        if ".lora_B." in name:
            parameter.data = 0.1 * draw(*parameter.shape, seed=1000 * seed + number)
    save_adapter(model.network, model.network.state_dict(), folder)
    return model


def test_a_saved_adapter_merges_into_the_same_function(subject, tmp_path):
    inputs, adapted = subject.inputs(), write_adapter(subject, tmp_path, seed=1)
    merged = subject.load(adapter=str(tmp_path))
    assert not getattr(merged.network, "peft_config", None)
    after = replace(subject, model=merged).velocity(inputs)
    assert distance(after, subject.velocity(inputs)) > 1e-3
    assert distance(after, replace(subject, model=adapted).velocity(inputs)) <= 1e-5


def test_soups_of_adapters_commute(subject, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for number, folder in enumerate((one, two)):
        write_adapter(subject, folder, seed=1 + number)
    first, second, whole = (
        subject.load(adapter=text).network.state_dict()
        for text in (f"{one}@0.5,{two}@-0.25", f"{two}@-0.25,{one}@0.5", f"{one},{two}")
    )
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-6) for name in first)
    assert any(not torch.allclose(first[name], whole[name], rtol=0, atol=1e-3) for name in first)


def test_a_saved_network_comes_back_bit_for_bit(subject, tmp_path):
    inputs, network = subject.inputs(), subject.model.network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    save_network(network, network.state_dict(), tmp_path)
    back = replace(subject, model=subject.load(network=str(tmp_path)))
    assert torch.equal(back.velocity(inputs), subject.velocity(inputs))


def test_an_unknown_control_is_refused_with_the_one_that_was_meant(subject):
    for prompt in subject.fixture.prompts:
        with refused("no control 'colour'"):
            subject.model.embed(prompt.with_control("colour", "blue"))
        for name, _ in prompt.controls:
            with refused(f"no control '{name}x'. Did you mean '{name}'"):
                subject.model.embed(prompt.with_control(f"{name}x", "blue"))


def noise(seconds, rate, channels=1, seed=0):
    samples = np.random.default_rng(seed).normal(0, 0.1, (channels, int(seconds * rate))).astype(np.float32)
    return Clip(samples=samples, sample_rate=rate)


def test_recordings_of_any_rate_and_width_are_encoded(subject):
    model, spec = subject.model, subject.model.spec
    for rate, channels in ((22050, 1), (spec.sample_rate, 2), (48000, 3)):
        latents = model.encode(noise(0.5, rate, channels))
        assert latents.shape[1] == spec.channels
        assert len(latents) == pytest.approx(0.5 * spec.frames_per_second, abs=1)
        assert latents.isfinite().all()


def test_encoding_is_a_draw_of_its_generator_and_certain_without(subject):
    model, clip = subject.model, noise(0.5, subject.model.spec.sample_rate)
    mean, again, one, same, other = (
        model.encode(clip, None if seed is None else torch.Generator().manual_seed(seed))
        for seed in (None, None, 1, 1, 2)
    )
    assert torch.equal(mean, again)
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (not subject.fixture.posterior)
    assert torch.equal(one, mean) == (not subject.fixture.posterior)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_chunk_with_its_surroundings_sounds_as_in_its_song(subject, place):
    model, around = subject.model, subject.model.spec.receptive_frames
    length = 2 * around + 30
    low, high = {"first": (0, 12), "middle": (around + 5, around + 17), "last": (length - 12, length)}[place]
    song = draw(length, model.spec.channels)
    whole = model.decode(song)
    per_frame = whole.samples.shape[1] // length
    assert whole.sample_rate == model.spec.sample_rate
    assert whole.samples.shape[1] == length * per_frame
    assert per_frame * model.spec.frames_per_second == pytest.approx(whole.sample_rate)
    first, last = max(0, low - around), min(length, high + around)
    chunk = model.decode(song[first:last], first).samples[
        :, (low - first) * per_frame : (high - first) * per_frame
    ]
    expected = whole.samples[:, low * per_frame : high * per_frame]
    assert np.abs(chunk - expected).max() <= 1e-4 * np.abs(whole.samples).max()


def test_a_recording_of_a_style_is_embedded_or_refused(subject):
    prompt = replace(subject.fixture.prompts[0], text=None, style_audio=noise(1.0, 24000))
    if not subject.model.embeds_audio:
        with refused("style_audio"):
            subject.model.embed(prompt)


def test_a_model_without_a_fixture_is_a_failure_that_says_what_to_write():
    with pytest.raises(pytest.fail.Exception, match=r"write tests/contract/models/nobody\.py with FIXTURE"):
        model_fixture("nobody")
