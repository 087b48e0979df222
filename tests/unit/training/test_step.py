"""One training step: what is shared, what is masked, what does not depend on the batch."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.training import batch, identity, select_examples

from diffdpo.errors import DataError
from diffdpo.flow import LengthShift, Timesteps
from diffdpo.models import MODELS
from diffdpo.models.base import Inpaints, SongModel, supports
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.objectives.terms.restraints import Anchor
from diffdpo.training.config import InpaintConfig, LoraConfig, TrainConfig
from diffdpo.training.loop import learning_rate
from diffdpo.training.references import AdapterOff, FrozenCopy
from diffdpo.training.setup import add_lora
from diffdpo.training.step import outputs, sample_noise

pytestmark = pytest.mark.slow


@pytest.fixture
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


CFG = TrainConfig(dropout={"style": 0.5, "lyrics": 0.5})


def run(model, data, objective, reference, cfg=CFG, policy=None):
    return outputs(
        model, policy or model.network, reference, data, objective, sample_noise(data, cfg, seed=3)
    )


def test_errors_do_not_depend_on_the_micro_batch(model):
    whole, reference = batch(), FrozenCopy.take(model.network, torch.device("cpu"))
    together = run(model, whole, DPO(), reference)
    apart = [run(model, select_examples(whole, group), DPO(), reference) for group in ([0], [1, 2], [3])]
    for name in ("policy", "reference"):
        pieces = torch.cat([getattr(piece, name) for piece in apart])
        assert torch.allclose(getattr(together, name), pieces, rtol=1e-5)


def test_what_lies_in_the_padding_does_not_matter(model):
    data = batch()
    dirty = data.latents.clone()
    for example, row in enumerate(data.frames.tolist()):
        for member, end in enumerate(row):
            dirty[example, member, end:] = 1e6
    clean, changed = (
        run(model, replace(data, latents=x), FlowMatching(), None) for x in (data.latents, dirty)
    )
    assert torch.equal(clean.policy, changed.policy)


def test_winner_and_loser_share_noise_time_and_dropout(model):
    data = batch(lengths=((30, 30), (18, 18)))
    same = replace(data, latents=data.latents[:, :1].repeat(1, 2, 1, 1))
    seen = run(model, same, DPO(), FrozenCopy.take(model.network, torch.device("cpu")))
    assert torch.allclose(seen.policy[:, 0], seen.policy[:, 1], rtol=1e-6)


def test_dropout_is_drawn_per_example_and_keyed_by_position():
    data = batch(members=1, lengths=((10,),) * 4)
    many = replace(data, positions=(1, 2, 3, 4))
    one, two = (
        sample_noise(replace(many, positions=order), CFG, 0) for order in ((1, 2, 3, 4), (4, 3, 2, 1))
    )
    assert torch.equal(one.drop_masks["style"], two.drop_masks["style"].flip(0))
    assert torch.equal(one.t, two.t.flip(0))
    assert torch.equal(one.noise, two.noise.flip(0))
    share = torch.cat(
        [
            sample_noise(replace(many, positions=tuple(range(4 * i, 4 * i + 4))), CFG, 0).drop_masks["style"]
            for i in range(200)
        ]
    )
    assert share.float().mean().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_policy_that_is_its_reference_has_a_margin_of_exactly_zero(model, dtype):
    add_lora(model.network, LoraConfig(rank=2), model.lora_targets, seed=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        seen = run(model, batch(), DPO(), AdapterOff(identity))
    assert torch.equal(DPO()(seen).metrics["margin"], torch.zeros(4))


def test_adapters_off_equals_a_frozen_copy_also_after_training(model):
    frozen = FrozenCopy.take(model.network, torch.device("cpu"))
    add_lora(model.network, LoraConfig(rank=2), model.lora_targets, seed=0)
    optimizer = torch.optim.AdamW([p for p in model.network.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        run_ = run(model, batch(), DPO(beta=100.0, anchor=Anchor(winner=1.0)), frozen)
        DPO(beta=100.0, anchor=Anchor(winner=1.0))(run_).loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    off, copy = (run(model, batch(), DPO(), reference) for reference in (AdapterOff(identity), frozen))
    assert torch.equal(off.reference, copy.reference)
    assert not torch.equal(off.policy, off.reference)


def test_adapters_come_back_when_the_reference_fails(model):
    add_lora(model.network, LoraConfig(rank=2), model.lora_targets, seed=0)
    with pytest.raises(RuntimeError), AdapterOff(identity).of(model.network):
        raise RuntimeError
    layer = model.network.transformer_blocks[0].self_attn.q_proj
    assert not layer.disable_adapters


def test_the_reference_gets_no_gradient(model):
    reference = FrozenCopy.take(model.network, torch.device("cpu"))
    DPO()(run(model, batch(), DPO(), reference)).loss.sum().backward()
    assert all(p.grad is None for p in reference.network.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.network.parameters())


def test_without_need_there_is_no_reference_pass(model):
    class Never:
        @contextmanager
        def of(self, network):
            raise AssertionError("flow matching needs no reference")
            yield

        def follow(self, network, step):
            raise AssertionError("nor does anything follow")

    seen = run(model, batch(members=1), FlowMatching(), Never())
    assert seen.reference is None
    assert seen.velocities is None


def test_declared_needs_are_delivered(model):
    class Curious:
        batch_kind = "pair"
        needs = frozenset({"reference", "velocities", "frame_errors"})
        takes = frozenset()

        def __call__(self, outputs):
            raise AssertionError("only its needs are asked for")

    seen = run(model, batch(), Curious(), FrozenCopy.take(model.network, torch.device("cpu")))
    again = seen.frame_errors.policy.where(seen.mask, 0).sum(-1) / seen.mask.sum(-1)
    assert torch.allclose(again, seen.policy)
    squared = (seen.velocities.policy - seen.velocities.target).square().mean(-1)
    assert torch.allclose(squared, seen.frame_errors.policy)


def test_in_painting_shows_the_song_outside_the_span_and_counts_inside(model, monkeypatch):
    cfg = TrainConfig(inpaint=InpaintConfig(0.5, 0.5))
    data = batch(members=1, lengths=((20,), (12,)))
    contexts = []
    velocity = type(model).velocity

    def spy(self, network, x, t, condition, frames):
        contexts.append(condition["audio"])
        return velocity(self, network, x, t, condition, frames)

    monkeypatch.setattr(type(model), "velocity", spy)
    seen = run(model, data, FlowMatching(), None, cfg)
    span = seen.mask[:, 0]
    assert span.sum(1).tolist() == [10, 6]
    for example, end in enumerate((20, 12)):
        (context,) = contexts[example]  # each song goes through the network at its own length
        assert torch.equal(
            context[:end][~span[example, :end]], data.latents[example, 0, :end][~span[example, :end]]
        )
        assert context[span[example, :end]].abs().max() == 0
        assert len(context) == end


def test_where_the_context_is_dropped_the_whole_song_counts(model):
    cfg = TrainConfig(inpaint=InpaintConfig(0.5, 0.5), dropout={"context": 1.0})
    data = batch(members=1, lengths=((20,), (12,)))
    assert run(model, data, FlowMatching(), None, cfg).mask[:, 0].sum(1).tolist() == [20, 12]


def test_a_model_that_cannot_be_shown_a_song_says_so_in_one_line(model):
    members = [name for name in dir(SongModel) if not name.startswith("_")]
    plain = SimpleNamespace(**{name: getattr(model, name) for name in members})
    assert not supports(plain, Inpaints)
    data = batch(members=1, lengths=((20,), (12,)))
    with pytest.raises(
        DataError, match=r"this model cannot in-paint, which train\.inpaint.* need; choose another"
    ):
        run(plain, data, FlowMatching(), None, TrainConfig(inpaint=InpaintConfig(0.5, 0.5)))
    assert run(plain, data, FlowMatching(), None, TrainConfig()).policy.isfinite().all()
    with pytest.raises(DataError, match=r"no part 'stile'\. Did you mean 'style'\? Known: style, lyrics"):
        run(model, data, FlowMatching(), None, TrainConfig(dropout={"stile": 1.0}))


def test_every_member_is_trained_under_its_own_condition(model):
    """Winner and loser of a pair may have been generated from different plans, here from different styles."""
    data, loser = batch(), torch.nn.functional.normalize(torch.arange(16.0), dim=0)
    different = replace(
        data,
        rows=tuple(
            (winner, replace(other, embedding=other.embedding | {"style": loser}))
            for winner, other in data.rows
        ),
    )
    exchanged = replace(
        different,
        latents=data.latents.flip(1),
        frames=data.frames.flip(1),
        rows=tuple(example[::-1] for example in different.rows),
    )
    alike, apart, turned = (run(model, d, FlowMatching(), None) for d in (data, different, exchanged))
    dropped = sample_noise(data, CFG, seed=3).drop_masks["style"]
    assert torch.equal(alike.policy[:, 0], apart.policy[:, 0])
    assert torch.isclose(alike.policy[:, 1], apart.policy[:, 1]).tolist() == dropped.tolist()
    assert 0 < dropped.sum() < len(dropped)
    assert torch.allclose(turned.policy, apart.policy.flip(1), rtol=1e-5)


@pytest.mark.parametrize("density", ["logit_normal", "uniform"])
def test_times_of_a_few_step_network_are_the_only_ones_drawn(model, density):
    """And each is as likely as the others, whatever the density; the example's position decides."""
    known = (1.0, 0.6, 0.3, 0.0)
    many = replace(batch(members=1), positions=(1, 2, 3, 4))
    cfg = replace(CFG, timesteps=Timesteps(density))
    draws = [
        sample_noise(replace(many, positions=tuple(range(4 * i, 4 * i + 4))), cfg, 0, known).t
        for i in range(150)
    ]
    values, counts = torch.cat(draws).unique(return_counts=True)
    assert torch.equal(values, torch.tensor([0.3, 0.6, 1.0]))
    assert counts.tolist() == pytest.approx([200] * 3, abs=58)  # five standard deviations
    again = sample_noise(replace(many, positions=(5, 4, 3, 2)), cfg, 0, known).t
    assert torch.equal(again[2], draws[0][3])
    plain = sample_noise(many, cfg, 0)
    assert torch.equal(plain.noise, sample_noise(many, cfg, 0, known).noise)


def test_times_are_shifted_by_the_length_asked_for_without_its_headroom():
    """Members share a time; songs of other lengths have their logits moved, by nothing but the length."""
    data = batch()
    long = replace(data, rows=tuple(tuple(replace(row, frames=1064) for row in rows) for rows in data.rows))
    cfg = replace(
        CFG, timesteps=Timesteps(length_shift=LengthShift(0.0, 2.0, min_frames=500, max_frames=1500))
    )
    plain = sample_noise(data, CFG, seed=3).t
    assert torch.allclose(sample_noise(data, cfg, seed=3).t, plain, atol=1e-6)  # all shorter than 500
    moved = torch.sigmoid(torch.logit(plain) + 1.0)
    assert torch.allclose(sample_noise(long, cfg, seed=3, headroom=64).t, moved, atol=1e-6)


def test_the_learning_rate_is_a_function_of_the_step():
    cfg = TrainConfig(steps=100, learning_rate=1.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(cfg, 0) == pytest.approx(0.1, rel=1e-3)
    assert learning_rate(cfg, 50) == pytest.approx(0.5)
    assert learning_rate(cfg, 99) < 1e-3
    assert learning_rate(replace(cfg, schedule="constant"), 99) == 1.0
    assert learning_rate(replace(cfg, schedule="linear"), 75) == pytest.approx(0.25)
