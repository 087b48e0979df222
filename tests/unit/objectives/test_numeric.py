"""Where every run starts, what a reduction means, and how much precision a margin needs: closed forms."""

import pytest
import torch

from diffdpo import flow
from diffdpo.objectives.dgpo import DGPO
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.kto import KTO
from diffdpo.types import Outputs, Velocities


def test_unpaired_and_grouped_objectives_at_the_start():
    single, score = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
    assert KTO()(Outputs(policy=single, reference=single, score=score)).loss.item() == 0.5
    group, advantages = torch.tensor([[0.2, 0.4]]).double(), torch.tensor([[1.0, -1.0]]).double()
    result = DGPO()(Outputs(policy=group, reference=group, score=advantages))
    assert result.metrics["gradient_factor"].item() == 0.5
    assert result.loss.item() == pytest.approx(0.5 * (0.2 - 0.4) / 2)


@pytest.mark.parametrize("frames", [7, 20])
def test_sums_are_means_times_what_they_are_over(frames):
    """The margin of `sum` is that of `mean` times all valid elements, of `per_frame` times all valid frames."""
    random, channels = torch.Generator().manual_seed(0), 3
    policy, target, reference = (torch.randn(1, 2, 20, channels, generator=random).double() for _ in range(3))
    mask = (torch.arange(20) < frames).expand(1, 2, 20)

    def errors(prediction):
        return torch.stack(
            [flow.masked_error(prediction[:, k], target[:, k], mask[:, k]) for k in range(2)], dim=1
        )

    outputs = Outputs(
        policy=errors(policy),
        reference=errors(reference),
        mask=mask,
        velocities=Velocities(policy=policy, target=target, reference=reference),
    )
    margins = {
        reduction: DPO(beta=2.0, reduction=reduction)(outputs).metrics["margin"].item()
        for reduction in ("mean", "per_frame", "sum")
    }
    assert margins["per_frame"] == pytest.approx(frames * margins["mean"], rel=1e-12)
    assert margins["sum"] == pytest.approx(frames * channels * margins["mean"], rel=1e-12)


def test_margins_without_system_shrink_with_the_root_of_the_length():
    """Noise in the policy averages out over elements: log std over log elements has slope -1/2."""
    random = torch.Generator().manual_seed(0)
    sizes, spreads = (256, 1024, 4096, 16384), []
    for size in sizes:
        target, drift = (torch.randn(400, 2, size, generator=random) for _ in range(2))
        reference = target + torch.randn(400, 2, size, generator=random)
        policy = reference + 0.01 * drift
        errors = [((prediction - target).double() ** 2).mean(-1) for prediction in (policy, reference)]
        margin = DPO(beta=2.0)(Outputs(policy=errors[0], reference=errors[1])).metrics["margin"]
        spreads.append(margin.std().item())
    logs = [torch.tensor(values).double().log() for values in (sizes, spreads)]
    centred = [values - values.mean() for values in logs]
    slope = (centred[0] @ centred[1]) / (centred[0] @ centred[0])
    assert slope.item() == pytest.approx(-0.5, abs=0.05)


def test_a_change_with_system_moves_the_margin_alike_at_any_length():
    """The winner's error one per cent lower: beta/2 times that much, whatever the number of elements."""
    for size in (256, 16384):
        target = torch.zeros(1, size, dtype=torch.float64)
        reference, policy = torch.full_like(target, 0.8**0.5), torch.full_like(target, (0.8 * 0.99) ** 0.5)
        errors = [(prediction**2).mean(-1) for prediction in (policy, reference)]
        both = [torch.stack([error, errors[1]], 1) for error in errors]
        margin = DPO(beta=2000.0)(Outputs(policy=both[0], reference=both[1])).metrics["margin"]
        assert margin.item() == pytest.approx(8.0)


def test_predictions_in_bf16_cost_a_margin_little_and_errors_in_bf16_a_lot():
    """At beta 2000, 131,072 elements and a winner 0.4 % better: .025 with fp32 reduction, more than 1 in bf16."""
    size, off = 131_072, []
    for seed in range(8):
        random = torch.Generator().manual_seed(seed)
        target, away = (torch.randn(1, 2, size, generator=random) for _ in range(2))
        better = torch.tensor([0.996**0.5, 1.0])[None, :, None]

        def margin(round_to, reduce_in, target=target, away=away, better=better):
            predictions = [
                (target + scale * away).to(round_to).to(reduce_in) for scale in (better, torch.ones(()))
            ]
            errors = [
                ((prediction - target.to(reduce_in)) ** 2).mean(-1).double() for prediction in predictions
            ]
            return DPO(beta=2000.0)(Outputs(policy=errors[0], reference=errors[1])).metrics["margin"].item()

        exact = margin(torch.float32, torch.float64)
        assert exact == pytest.approx(4.0, rel=0.02)
        off.append([abs(margin(torch.bfloat16, to) - exact) for to in (torch.float32, torch.bfloat16)])
    in_fp32, in_bf16 = torch.tensor(off).mean(0).tolist()
    assert in_fp32 < 0.025
    assert in_bf16 > 1.0
