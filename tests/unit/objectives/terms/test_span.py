"""Spans: the error in the frames that a preference is about counts, however long the song is."""

import math

import pytest
import torch

from diffdpo import flow
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.terms.restraints import Safeguard
from diffdpo.objectives.terms.weights import Span
from diffdpo.types import FrameErrors, Outputs, Velocities

LENGTH, DEFECT = 95, slice(40, 41)


def song(policy, reference, *, span, frames=LENGTH, velocities=None):
    """One pair whose errors are given frame by frame; means over the whole song come with it."""
    mask = torch.arange(LENGTH) < frames
    policy, reference = (
        torch.as_tensor(x, dtype=torch.float64).expand(1, 2, LENGTH) for x in (policy, reference)
    )
    where = torch.zeros(1, LENGTH, dtype=torch.bool)
    where[:, span] = True

    def mean(x):
        return (x * mask).sum(-1) / mask.sum()

    return Outputs(
        policy=mean(policy),
        reference=mean(reference),
        mask=mask.expand(1, 2, LENGTH),
        span=where,
        frame_errors=FrameErrors(policy=policy, reference=reference),
        velocities=velocities,
    )


def one_frame_worse(by):
    """A loser that equals the winner but for one frame, which the policy finds hard and the reference does not."""
    policy = torch.full((1, 2, LENGTH), 0.5, dtype=torch.float64)
    policy[:, 1, DEFECT] += by
    return policy, torch.full((1, 2, LENGTH), 0.5, dtype=torch.float64)


def margin(share, outputs):
    return DPO(beta=10.0, span=Span(share))(outputs).metrics["margin"].item()


def test_a_short_defect_is_diluted_by_the_whole_and_not_by_its_span():
    outputs = song(*one_frame_worse(0.2), span=DEFECT)
    assert margin(0.0, outputs) == pytest.approx(10 / 2 * 0.2 / LENGTH)
    assert margin(1.0, outputs) == pytest.approx(10 / 2 * 0.2)
    assert margin(0.5, outputs) == pytest.approx(10 / 2 * 0.2 * (0.5 + 0.5 / LENGTH))


def test_a_pair_that_names_no_span_is_not_changed():
    outputs = song(*one_frame_worse(0.2), span=slice(None))
    assert margin(0.7, outputs) == pytest.approx(margin(0.0, outputs), rel=1e-12)


def test_a_span_behind_the_end_of_a_song_leaves_it_whole():
    policy, reference = one_frame_worse(0.2)
    outputs = song(policy, reference, span=slice(60, 70), frames=50)
    assert margin(1.0, outputs) == pytest.approx(10 / 2 * 0.2 / 50)


def test_weights_sum_to_one_and_padding_cannot_matter():
    outputs = song(*one_frame_worse(0.2), span=slice(30, 60), frames=50)
    weights = flow.span_weights(outputs.mask, outputs.span[:, None], 0.3, torch.float64)
    assert torch.allclose(weights.sum(-1), torch.ones(1, 2, dtype=weights.dtype))
    assert torch.equal(Span(0.3)(outputs).frame_weights, weights)
    dirty = outputs.frame_errors.policy.clone()
    dirty[..., 50:] = math.nan
    assert flow.weighted_frame_mean(dirty, weights).isfinite().all()


def test_the_gradient_goes_to_the_span():
    policy, reference = one_frame_worse(0.0)
    policy.requires_grad_()
    outputs = song(policy, reference, span=slice(40, 50))
    DPO(beta=8.0, span=Span(1.0))(outputs).loss.sum().backward()
    pull = torch.zeros(LENGTH, dtype=torch.float64)
    pull[40:50] = 8.0 / 4 / 10  # beta/4, spread over ten frames
    assert torch.allclose(policy.grad[0], torch.stack([pull, -pull]))


def test_the_safeguard_looks_at_the_span_too():
    """Outside the span winner and loser pull the same way, inside against each other: nothing is held back."""
    target = torch.zeros(1, 2, LENGTH, 1, dtype=torch.float64)
    prediction = torch.ones_like(target)
    prediction[:, 1, 40:50] = -1
    velocities = Velocities(policy=prediction, target=target, reference=prediction)
    errors = prediction[..., 0] ** 2
    outputs = song(errors, errors, span=slice(40, 50), velocities=velocities)
    whole = DPO(safeguard=Safeguard(0.9))(outputs).metrics["loser_scale"].item()
    inside = DPO(safeguard=Safeguard(0.9), span=Span(1.0))(outputs).metrics["loser_scale"].item()
    assert whole == pytest.approx(0.1 * LENGTH / (LENGTH - 20))  # (1 - mu) |w|² / <w, l>
    assert inside == 1.0


def test_the_share_is_checked():
    with pytest.raises(ValueError, match=r"span.share must be in \[0, 1\], got 1.5"):
        Span(1.5)


def test_whole_songs_need_no_errors_of_frames():
    assert Span(0.0).needs == frozenset()
    assert Span(0.1).needs == DPO(span=Span(0.1)).needs - {"reference"} == {"frame_errors"}
