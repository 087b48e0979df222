"""What holds for every objective, with the terms it composes one by one and all together."""

from dataclasses import replace

import pytest
import torch
from support.objectives import TERMS, has, pair, random_outputs, reverse, rows, with_terms, with_velocities

from diffdpo.objectives import OBJECTIVES
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.objectives.links import LINKS
from diffdpo.objectives.terms.margin import AutoBeta, SoftLabel
from diffdpo.objectives.terms.restraints import Anchor
from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.registry import Choice
from diffdpo.types import Outputs, Velocities

PAIRS = [name for name in OBJECTIVES if OBJECTIVES[name].batch_kind == "pair"]
VARIANTS = {
    **{name: OBJECTIVES[name]() for name in OBJECTIVES},
    **{f"{name} {term}": with_terms(name, term) for name in OBJECTIVES for term in TERMS if has(name, term)},
    **{f"{name} all": with_terms(name) for name in OBJECTIVES},
    **{
        f"dpo {reduction}": with_terms("dpo", reduction=reduction, beta=0.5)
        for reduction in ("per_frame", "sum")
    },
    **{
        f"{name} certainty": OBJECTIVES[name](soft_label=SoftLabel("certainty_margin"), beta=5.0)
        for name in ("dpo", "linear_dpo")
    },
    **{f"dpo {link}": DPO(link=Choice(link), beta=10.0) for link in LINKS},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_are_per_example_and_do_not_see_their_neighbours(name):
    objective = VARIANTS[name]
    outputs = random_outputs(objective)
    whole = objective(outputs)
    alone = [objective(rows(outputs, slice(i, i + 1))) for i in range(6)]
    assert whole.loss.shape == (6,)
    assert torch.allclose(whole.loss, torch.cat([output.loss for output in alone]), rtol=1e-13, atol=0)
    for key, value in whole.metrics.items():
        assert torch.allclose(value, torch.cat([output.metrics[key] for output in alone]), rtol=1e-13), key


@pytest.mark.parametrize("name", VARIANTS)
def test_metrics_carry_no_gradient_and_the_loss_does(name):
    objective = VARIANTS[name]
    outputs = random_outputs(objective)
    result = objective(outputs)
    assert not any(metric.requires_grad for metric in result.metrics.values())
    assert all(metric.shape == (6,) for metric in result.metrics.values())
    gradient = torch.autograd.grad(result.loss.sum(), outputs.velocities.policy)[0]
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_what_stands_in_the_padding_cannot_matter(name):
    objective = VARIANTS[name]
    outputs = random_outputs(objective)
    padded = {
        key: v.detach().where(outputs.mask[..., None], 7.0)
        for key, v in vars(outputs.velocities).items()
        if v is not None
    }
    assert torch.allclose(
        objective(outputs).loss, objective(with_velocities(outputs, **padded)).loss, rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_an_objective_gets_along_with_what_it_declares(name):
    """Without the fields that it neither needs nor takes, the loss is the same."""
    objective = VARIANTS[name]
    outputs = random_outputs(objective)
    fields = {"policy", "t", "mask", "score", "scale", "state"} | objective.needs | objective.takes
    bare = Outputs(**{key: value for key, value in vars(outputs).items() if key in fields})
    if bare.velocities is not None:
        names = {"policy", "target"} | (objective.needs & {"reference", "old"})
        names |= {"plus", "minus"} if "contrast" in objective.needs else set()
        bare = replace(bare, velocities=Velocities(**{n: getattr(bare.velocities, n) for n in names}))
    assert torch.equal(objective(outputs).loss, objective(bare).loss)


DETACHED = ("linear_dpo", "dgpo", "nft", "awm")
"""Their weights are constants for the gradient, so that it is not the loss's; their own tests say what it is."""


@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.startswith(DETACHED)])
def test_gradients_equal_finite_differences(name):
    """Along a random direction in the space of the policy's velocities."""
    objective = VARIANTS[name]
    if getattr(objective, "safeguard", None) is not None:
        objective = replace(objective, safeguard=None)  # whose point is a gradient that is not the loss's
    if getattr(objective, "beta", 0.0) > 20:
        objective = replace(objective, beta=20.0)
    outputs = random_outputs(objective, examples=3)
    start = outputs.velocities.policy.detach()
    gradient = torch.autograd.grad(objective(outputs).loss.sum(), outputs.velocities.policy)[0]
    step, direction = 1e-6, torch.randn(start.shape, generator=torch.Generator().manual_seed(1)).double()
    ahead, behind = (
        objective(with_velocities(outputs, policy=start + sign * step * direction)).loss.sum()
        for sign in (1, -1)
    )
    slope = (gradient * direction).sum().item()
    assert (ahead - behind).item() / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-7)


EXCEPTIONS = {"dspo", "dpo apo_down", "dpo discopop"}
"""DSPO looks at velocities, APO-down lowers both likelihoods, DiscoPOP is not monotone at zero."""


@pytest.mark.parametrize(
    "name", [n for n in VARIANTS if VARIANTS[n].batch_kind == "pair" and n.split()[0] != "dspo"]
)
def test_a_step_lowers_the_winners_error_and_not_the_losers(name):
    """At policy = reference, where every objective on pairs agrees on what is better."""
    objective = VARIANTS[name]
    errors = torch.tensor([[0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    velocity = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    outputs = Outputs(
        policy=errors,
        reference=errors.detach(),
        t=torch.tensor([0.5]),
        mask=torch.ones(1, 2, 1, dtype=torch.bool),
        velocities=Velocities(policy=velocity, target=velocity, reference=velocity),
    )
    if getattr(objective, "span", None) is not None:
        objective = replace(objective, span=None)  # whose errors are those of frames
    if name in EXCEPTIONS:
        return
    winner, loser = torch.autograd.grad(objective(outputs).loss.sum(), errors)[0][0]
    assert winner > 0
    assert loser < 0


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if has(name, "timestep")])
def test_a_constant_weight_is_none_and_any_weight_is_a_factor_of_all_squared_errors(name):
    """(1 - t)/t is 1 at t = ½, and 3 at t = ¼: as if predictions were off by √3 times as much."""
    plain, weighted = (OBJECTIVES[name](timestep=TimestepWeight(w)) for w in ("constant", "clipped_elbo"))
    outputs = random_outputs(plain)
    half = replace(outputs, t=torch.full_like(outputs.t, 0.5))
    assert torch.equal(plain(outputs).loss, OBJECTIVES[name]()(outputs).loss)
    assert torch.equal(plain(half).loss, weighted(half).loss)
    quarter = replace(outputs, t=torch.full_like(outputs.t, 0.25))
    velocities = vars(outputs.velocities)
    further = {key: 3**0.5 * v.detach() for key, v in velocities.items() if v is not None}
    scaled = with_velocities(outputs, **further)
    assert torch.allclose(weighted(quarter).loss, plain(scaled).loss, rtol=1e-11)


@pytest.mark.parametrize("name", PAIRS)
def test_a_soft_label_of_one_is_a_hard_one_and_ignoring_labels_is_having_none(name):
    objective = OBJECTIVES[name]()
    outputs = random_outputs(objective)
    hard = objective(replace(outputs, soft_label=None)).loss
    certain = replace(outputs, soft_label=torch.ones_like(outputs.soft_label))
    assert torch.equal(objective(certain).loss, hard)
    assert torch.equal(OBJECTIVES[name](soft_label=SoftLabel("ignore"))(outputs).loss, hard)
    assert not torch.equal(objective(outputs).loss, hard)


@pytest.mark.parametrize("name", PAIRS)
def test_a_soft_label_is_the_mean_over_both_ways_round(name):
    objective = OBJECTIVES[name](span=TERMS["span"])
    outputs = random_outputs(objective)
    ahead, behind = (objective(replace(o, soft_label=None)).loss for o in (outputs, reverse(outputs)))
    p = outputs.soft_label
    assert torch.allclose(objective(outputs).loss, p * ahead + (1 - p) * behind, rtol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_a_label_of_a_half_says_nothing_about_the_order(name):
    objective = OBJECTIVES[name]()
    outputs = random_outputs(objective)
    half = torch.full_like(outputs.soft_label, 0.5)
    losses = [objective(replace(o, soft_label=half)).loss for o in (outputs, reverse(outputs))]
    assert torch.allclose(*losses, rtol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_a_span_of_all_frames_is_no_span_and_a_share_of_zero_never_is(name):
    plain, local = OBJECTIVES[name](), OBJECTIVES[name](span=TERMS["span"])
    outputs = random_outputs(plain)
    everywhere = replace(outputs, span=torch.ones_like(outputs.span))
    assert torch.allclose(local(everywhere).loss, plain(outputs).loss, rtol=1e-11)
    assert torch.equal(replace(local, span=replace(local.span, share=0.0))(outputs).loss, plain(outputs).loss)
    assert not torch.allclose(local(outputs).loss, plain(outputs).loss, rtol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_a_share_of_one_sees_the_span_and_nothing_else(name):
    """The loss is that of songs of which only the span exists, with every other term the objective has."""
    objective = with_terms(name)
    if hasattr(objective, "anchor"):  # anchors hold whole songs
        objective = replace(objective, anchor=Anchor(reward=0.2, hinge=0.4))
    outputs = random_outputs(objective)
    alone = with_velocities(replace(outputs, mask=outputs.mask & outputs.span[:, None]))
    whole = replace(objective, span=None)
    local = replace(objective, span=replace(objective.span, share=1.0))
    inside = (outputs.mask & outputs.span[:, None]).any(-1).all(-1)
    assert inside.any()
    assert torch.allclose(local(outputs).loss[inside], whole(alone).loss[inside], rtol=1e-11)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if has(name, "auto_beta")])
def test_an_automatic_beta_without_a_target_is_the_fixed_one(name):
    objective = OBJECTIVES[name](beta=7.0)
    outputs = random_outputs(objective)
    assert torch.equal(objective(outputs).loss, objective(replace(outputs, state={})).loss)
    assert objective.update({"steps": 3}, {}) == {}
    early = OBJECTIVES[name](beta=7.0, auto_beta=AutoBeta(target_factor=0.2, fixed_steps=50))
    assert torch.equal(objective(outputs).loss, early(outputs).loss)


def test_flow_matching_is_the_songs_error():
    outputs = Outputs(policy=torch.tensor([[0.25], [0.5]]))
    assert FlowMatching()(outputs).loss.tolist() == [0.25, 0.5]
    timed = replace(outputs, t=torch.tensor([0.25, 0.01]))
    assert FlowMatching(timestep=TimestepWeight("clipped_elbo"))(timed).loss.tolist() == [0.75, 2.5]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_beta_of_zero_is_refused(name):
    fields = {"reward_weighted": "temperature", "awm": "clip", "flow_matching": None, "slider": "eta"}
    field = fields.get(name, "beta")
    if field:
        with pytest.raises(ValueError, match="must be a positive number"):
            OBJECTIVES[name](**{field: 0.0})


def test_pairs_without_any_of_the_optional_data_will_do():
    for name in ("dpo", "linear_dpo"):
        assert OBJECTIVES[name]()(pair(0.2, 0.9, 0.3, 0.7)).loss.isfinite().all()
