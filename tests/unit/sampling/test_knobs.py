"""Knobs: closed forms on Gaussians, and neutral values that are the plain path on a real network."""

from dataclasses import replace

import pytest
import torch
from support.adapters import write_export
from support.launch import verb
from support.rows import song_row

from diffdpo import api
from diffdpo.data.prompts import negative_prompt
from diffdpo.errors import CheckpointError, ConfigError, DataError
from diffdpo.knob_parts import load_interventions, resolve_knobs
from diffdpo.models import MODELS
from diffdpo.models.adapter_schedule import timed_adapters
from diffdpo.models.checkpoints import save_network
from diffdpo.registry import Choice
from diffdpo.sampling.conditions import ConditionBatch
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.guidance import CFG, Guidance
from diffdpo.sampling.knobs import MODEL, Knob, KnobVariant, mix, used_networks
from diffdpo.sampling.longform import LongformConfig, SongRequest, compose
from diffdpo.sampling.request import InitLatents, InpaintContext, Request, axis_rows
from diffdpo.sampling.sampler import generate, planned_nfe
from diffdpo.sampling.solver import midpoint
from diffdpo.sampling.trajectory import schedule, solve
from diffdpo.sampling.variants import mixed_branches
from diffdpo.sampling.velocity import guided_velocity, initial_state
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow


def gaussian(mean, variance):
    """The velocity, noise - song, of songs that are N(mean, variance)."""

    def evaluate(x, t, rows=None):
        t = t[:, None, None].to(x)
        centred = (x - (1 - t) * mean) / ((1 - t) ** 2 * variance + t**2)
        return t * centred - mean - (1 - t) * variance * centred

    return evaluate


def toy_velocity(evaluates, knobs, guidance=None, axes=None):
    """The velocity of knobs on toy networks, by key; a row of the condition for each axis."""
    rows = torch.arange(2)
    conditions = ConditionBatch(
        condition={}, frames=torch.ones(8, dtype=torch.long), cond=rows, uncond=rows + 2, axes=axes or {}
    )
    branches = mixed_branches(evaluates, conditions, knobs)
    mask = torch.ones(2, 1, dtype=torch.bool)
    return guided_velocity(branches, guidance or Guidance(1.0, CFG()), mask)


def law(velocity, steps=40):
    """Mean and variance of the songs of an affine flow: where 0 and 1 of the noise end."""
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None]
    state = initial_state(torch.arange(2), x, Guidance(1.0, CFG()), cached=False)
    times = schedule(steps)[:, None].expand(-1, 2)
    x, _ = solve(velocity, x, times, midpoint, state, lambda step: lambda purpose, state: x)
    zero, far = x.flatten().tolist()
    return zero, (far - zero) ** 2


POLICY, LOSER = KnobVariant(adapter="policy"), KnobVariant(adapter="loser")
NETWORKS = [MODEL.network, POLICY.key.network, LOSER.key.network]


@pytest.mark.parametrize("w", [0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_extrapolation_of_a_shifted_mean_is_exact(w):
    """A linear reward shifts the mean of N(0.4, 0.8) by 1.1, and w times that is the reward's at w / beta."""
    evaluates = dict(zip(NETWORKS, [gaussian(0.4, 0.8), gaussian(1.5, 0.8)], strict=False))
    result = law(toy_velocity(evaluates, [Knob(w, POLICY)]))
    assert result == pytest.approx(
        law(toy_velocity({MODEL.network: gaussian(0.4 + 1.1 * w, 0.8)}, [])), abs=1e-9
    )
    assert result == pytest.approx((0.4 + 1.1 * w, 0.8), abs=2e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_winner_against_a_loser_shifts_the_mean_by_one_plus_two_gamma(gamma):
    delta = 0.7
    evaluates = dict(
        zip(NETWORKS, [gaussian(0.0, 1.0), gaussian(delta, 1.0), gaussian(-delta, 1.0)], strict=True)
    )
    knobs = [Knob(1.0, POLICY), Knob(gamma, POLICY, LOSER)]
    result = law(toy_velocity(evaluates, knobs))
    mean = delta * (1 + 2 * gamma)
    assert result == pytest.approx(law(toy_velocity({MODEL.network: gaussian(mean, 1.0)}, [])), abs=1e-9)
    assert result == pytest.approx((mean, 1.0), abs=2e-3)


@pytest.mark.parametrize(
    ("w", "mean", "variance"),
    [(0.5, 0.790, 0.579), (1.0, 1.333, 0.333), (2.0, 1.957, 0.111), (3.0, 2.223, 0.037)],
)
def test_extrapolation_of_a_quadratic_reward_sharpens_too_much(w, mean, variance):
    """The reward's own law at w = 2 would be N(1.6, 0.2); the variance is (1/3)^w."""
    evaluates = dict(zip(NETWORKS, [gaussian(0.0, 1.0), gaussian(4 / 3, 1 / 3)], strict=False))
    result = law(toy_velocity(evaluates, [Knob(w, POLICY)]), 80)
    assert result == pytest.approx((mean, variance), abs=3e-3)
    assert result[1] == pytest.approx(3**-w, abs=1e-3)


def test_an_axis_beside_guidance_is_the_score_of_all_three():
    """s_null + w_c (s_c - s_null) + w_s (s_axis - s_c), from scores that are written down."""
    laws, w_c, w_s = (
        {0: (0.5, 1.2), 1: (0.5, 1.2), 2: (-0.3, 2.0), 3: (-0.3, 2.0), 4: (1.1, 0.9), 5: (1.1, 0.9)},
        3.0,
        1.7,
    )

    def evaluate(x, t, rows):
        parts = [gaussian(*laws[int(row)])(x[k : k + 1], t[k : k + 1]) for k, row in enumerate(rows)]
        return torch.cat(parts)

    def score(x, t, row):
        mean, variance = laws[row]
        return -(x - (1 - t) * mean) / ((1 - t) ** 2 * variance + t**2)

    knobs = [Knob(w_s, KnobVariant(axis="a"), guided=False)]
    velocity = toy_velocity(
        {MODEL.network: evaluate}, knobs, Guidance(w_c, CFG()), {"a": torch.tensor([4, 5])}
    )
    x = torch.tensor([0.3, -2.0], dtype=torch.float64)[:, None, None]
    state = initial_state(torch.arange(2), x, Guidance(w_c, CFG()), cached=False)
    for t in (0.05, 0.4, 0.9):
        v, after = velocity(x, torch.full((2,), t, dtype=torch.float64), state)
        total = (
            score(x, t, 2) + w_c * (score(x, t, 0) - score(x, t, 2)) + w_s * (score(x, t, 4) - score(x, t, 0))
        )
        assert torch.allclose(-(x + (1 - t) * v) / t, total, atol=1e-10)
        assert after["nfe"].tolist() == [3, 3]


def test_more_of_an_axis_is_more_of_its_mean():
    means = []
    for weight in (0.0, 0.5, 1.0, 2.0, 4.0):
        evaluates = {
            MODEL.network: lambda x, t, rows: gaussian(0.0, 1.0)(x, t) - (rows >= 4)[:, None, None] * 0.5
        }
        velocity = toy_velocity(
            evaluates, [Knob(weight, KnobVariant(axis="a"))], axes={"a": torch.tensor([4, 5])}
        )
        means.append(law(velocity, 10)[0])
    assert means == sorted(set(means))


def test_equal_variants_are_one_and_what_cancels_is_none():
    a, b = KnobVariant(adapter="a"), KnobVariant(adapter="b")
    assert mix([Knob(1.0, a)]).cond == {a.key: 1.0}
    assert mix([Knob(0.1, a), Knob(0.2, a), Knob(-0.3, a)]).cond == {MODEL: 1.0}
    assert mix([Knob(1.0, a), Knob(0.5, a, b)]).cond == {a.key: 1.5, b.key: -0.5}
    axis = mix([Knob(2.0, KnobVariant(axis="x"))])
    assert axis.cond == {MODEL: -1.0, KnobVariant(axis="x").key: 2.0}
    assert axis.uncond == {MODEL.network: 1.0}
    assert used_networks([Knob(1.0, a, interval=[0.5, 1.0])]) == [MODEL.network, a.key.network]


@pytest.fixture(scope="module")
def load(bundle):
    return lambda **args: MODELS["tiny"](bundle=str(bundle), **args).load()


@pytest.fixture(scope="module")
def paths(load, tmp_path_factory):
    """Two adapters, and the whole network of one of them."""
    folder = tmp_path_factory.mktemp("knobs")
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        write_export(load(), folder / name, "peft")
    save_network(
        load().network, load(adapter=str(folder / "a" / "export")).network.state_dict(), folder / "whole"
    )
    return {
        "a": str(folder / "a" / "export"),
        "b": str(folder / "b" / "export"),
        "whole": str(folder / "whole"),
    }


def requests(model, *durations, axes=()):
    prompts = [
        Prompt(id=f"p{i}", text="rock", negative_text="ambient", duration_s=d)
        for i, d in enumerate(durations)
    ]
    return [
        Request(
            sample_id=prompt.id,
            row=song_row(model, prompt),
            negative=song_row(model, negative_prompt(prompt)),
            axis_rows=axis_rows(prompt, axes, model.spec.frames(prompt.duration_s), model.embed),
        )
        for prompt in prompts
    ]


def songs(model, cfg, choice=None, wanted=None, **settings):
    with load_interventions(model, cfg, choice) as interventions, torch.no_grad():
        batch = requests(model, 1.0, 0.6, axes=cfg.axes) if wanted is None else wanted
        return generate(model, batch, cfg, seed=5, interventions=interventions, **settings)


def is_equal(one, two):
    return all(torch.equal(a.latents, b.latents) and a.nfe == b.nfe for a, b in zip(one, two, strict=True))


def config(*knobs, **settings):
    return SamplingConfig(**{"steps": 3, "knobs": list(knobs), **settings})


def test_neutral_weights_are_the_plain_path_bit_for_bit(load, paths):
    """0 is the reference alone, 1 the policy alone, each with the evaluations of its own."""
    base, policy = load(), load(network=paths["whole"])
    plain, whole = songs(base, config()), songs(policy, config())
    variant = KnobVariant(network=paths["whole"])
    assert is_equal(songs(base, config(Knob(0.0, variant))), plain)
    assert is_equal(songs(base, config(Knob(1.0, variant))), whole)
    assert [song.nfe for song in plain] == [6, 6]
    both = songs(base, config(Knob(2.0, variant)))
    assert [song.nfe for song in both] == [12, 12]
    assert not torch.allclose(both[0].latents, whole[0].latents, atol=1e-3)
    outside = Knob(
        2.0, KnobVariant(adapter=paths["a"]), interval=[0.1, 0.2]
    )  # evaluations are at 1, 2/3, 1/3
    assert is_equal(songs(base, config(outside)), plain)
    assert timed_adapters(base.network) is None


def test_an_adapter_that_is_switched_is_the_merged_one_and_leaves_the_network_as_it_was(load, paths):
    base, merged = load(), load(adapter=f"{paths['a']}@0.5,{paths['b']}@-1")
    before = {name: tensor.clone() for name, tensor in base.network.state_dict().items()}
    variant = KnobVariant(adapter=f"{paths['a']}@0.5,{paths['b']}@-1")
    switched, reference = songs(base, config(Knob(1.0, variant))), songs(merged, config())
    for one, two in zip(switched, reference, strict=True):
        assert torch.allclose(one.latents, two.latents, atol=1e-4)
        assert one.nfe == two.nfe
    after = base.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(RuntimeError, match="boom"), load_interventions(base, config(Knob(2.0, variant))):
        raise RuntimeError("boom")
    assert base.network.state_dict().keys() == before.keys()


def test_knobs_that_leave_one_model_choose_it(load, paths, bundle):
    """So that a policy at 1 is the policy's merged path, whatever the knobs say of it."""
    args = {"bundle": str(bundle), "adapter": paths["b"]}
    choice = Choice("tiny", args)
    for knobs, expected in (
        ([Knob(0.0, KnobVariant(skip=[0]))], args),
        ([Knob(1.0, KnobVariant(adapter=paths["a"]))], {**args, "adapter": [paths["b"], paths["a"]]}),
        ([Knob(1.0, KnobVariant(network="n"))], {"bundle": str(bundle), "network": "n"}),
        ([Knob(-1.0, KnobVariant(), KnobVariant(without_adapters=True))], {"bundle": str(bundle)}),
    ):
        model, sampling = resolve_knobs(choice, config(*knobs))
        assert (dict(model.args), sampling.knobs) == (expected, [])
    for knob in (
        Knob(2.0, KnobVariant(adapter="a")),
        Knob(1.0, KnobVariant(skip=[0])),
        Knob(1.0, KnobVariant(adapter="a"), interval=[0.5, 1.0]),
        Knob(1.0, KnobVariant(adapter="a"), guided=False),
    ):
        assert resolve_knobs(choice, config(knob)) == (choice, config(knob))


def test_without_adapters_is_the_model_before_them(load, paths, bundle):
    """v_policy + (w - 1) (v_policy - v_ref), asked for from the policy's side."""
    base, policy = load(), load(adapter=paths["a"])
    choice = Choice("tiny", {"bundle": str(bundle), "adapter": paths["a"]})
    knob = Knob(1.0, negative=KnobVariant(without_adapters=True))
    here = songs(policy, config(knob), choice)
    there = songs(base, config(Knob(2.0, KnobVariant(adapter=paths["a"]))))
    assert torch.allclose(here[0].latents, there[0].latents, atol=1e-3)
    assert here[0].nfe == there[0].nfe == 12
    with pytest.raises(ConfigError, match="how the model was loaded"):
        songs(policy, config(knob))
    with pytest.raises(ConfigError, match="the model has no adapter"):
        songs(base, config(knob), Choice("tiny", {}))


def test_a_network_with_blocks_left_out_is_that_network(load):
    """Both blocks left out by hand: what goes into them comes out, whatever they hold."""
    model = load()
    alone = songs(model, config(Knob(1.0, KnobVariant(skip=[0, 1])), guidance_scale=1.0))
    for block in model.network.transformer_blocks:
        block.forward = lambda h, *args: h
    assert is_equal(songs(model, config(guidance_scale=1.0)), alone)
    with pytest.raises(ConfigError, match="has the blocks 0 to 1, got 2"):
        songs(load(), config(Knob(1.0, KnobVariant(skip=[2]))))
    model = load()
    model.network.transformer_blocks[0].register_forward_hook(
        lambda *args: (_ for _ in ()).throw(KeyError("hook"))
    )
    with pytest.raises(KeyError, match="hook"):
        songs(model, config(Knob(1.0, KnobVariant(skip=[0, 1]))))
    assert all("forward" not in block.__dict__ for block in model.network.transformer_blocks)


SKIP, AXIS = KnobVariant(skip=[1]), KnobVariant(axis="rhythm.pulse")
WAYS = {
    "extrapolation": lambda paths: [Knob(1.5, KnobVariant(adapter=paths["a"]))],
    "contrast": lambda paths: [
        Knob(1.0, KnobVariant(adapter=paths["a"])),
        Knob(0.5, KnobVariant(adapter=paths["a"]), KnobVariant(adapter=paths["b"])),
    ],
    "autoguidance": lambda paths: [Knob(1.0, negative=SKIP, interval=[0.3, 0.7], guided=False)],
    "axis": lambda paths: [Knob(1.5, AXIS, guided=False), Knob(0.5, AXIS, interval=[0.5, 1.0])],
    "network": lambda paths: [Knob(0.5, KnobVariant(paths["whole"], paths["b"], skip=[0], axis="critic.quality"))],
}  # fmt: skip
SETTINGS = {
    "extrapolation": {"cache_threshold": 0.3, "steps": 5},
    "contrast": {"guidance_scale": 1.0, "solver": Choice("midpoint")},
    "autoguidance": {"guidance": Choice("apg", {"momentum": -0.5}), "guidance_interval": [0.2, 0.8]},
    "axis": {"guidance_every": 2, "solver": Choice("sde")},
    "network": {},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_song_with_knobs_does_not_depend_on_its_batch(load, paths, way):
    """Lengths, contexts and variations mixed, so that rows are at other times than their neighbours."""
    model, cfg = load(), config(*WAYS[way](paths), **SETTINGS[way])
    one, two, three = requests(model, 1.0, 0.8, 0.6, axes=cfg.axes)
    latents = torch.randn(17, model.spec.channels, generator=torch.Generator().manual_seed(1))
    batch = [
        one,
        replace(two, context=InpaintContext(latents, torch.arange(17) < 9), clamp_context=True),
        replace(three, init=InitLatents(latents[: three.row.frames], 0.6)),
    ]
    together = songs(model, cfg, wanted=batch)
    for request, song in zip(batch, together, strict=True):
        (alone,) = songs(model, cfg, wanted=[request])
        assert torch.allclose(song.latents, alone.latents, atol=5e-5)
        assert song.nfe == alone.nfe
        if not cfg.cache_threshold and request is not batch[2]:
            assert song.nfe == planned_nfe(cfg)


def test_evaluations_are_those_of_the_sum(paths):
    """Four steps: a plain song takes 8 with guidance, 4 without."""
    a, b = KnobVariant(adapter="a"), KnobVariant(adapter="b")
    for knobs, guided, bare in (
        ([], 8, 4),
        ([Knob(0.0, a)], 8, 4),
        ([Knob(1.0, a)], 8, 4),
        ([Knob(1.5, a)], 16, 8),
        ([Knob(1.0, a), Knob(0.5, a, b)], 16, 8),
        ([Knob(1.0, negative=SKIP)], 16, 8),
        ([Knob(1.0, negative=SKIP, guided=False)], 12, 8),
        ([Knob(1.0, AXIS)], 8, 4),
        ([Knob(1.5, AXIS)], 12, 8),
        ([Knob(1.5, AXIS, guided=False)], 12, 8),
        ([Knob(1.5, a, interval=[0.5, 1.0])], 14, 7),
    ):
        assert planned_nfe(config(*knobs, steps=4)) == guided
        assert planned_nfe(config(*knobs, steps=4, guidance_scale=1.0)) == bare


def test_windows_of_a_long_song_have_knobs(load, paths):
    model, longform = load(), LongformConfig(method="joint", window_s=1.0, overlap_s=0.3)
    (request,) = requests(model, 2.0, axes=["order"])
    song = SongRequest(sample_id="a", row=request.row, negative=request.negative, axis_rows=request.axis_rows)
    results = []
    for weight in (0.0, 1e-9, 1.5):
        variant = KnobVariant(adapter=paths["a"], axis="order")
        cfg = config(Knob(weight, variant), Knob(weight, negative=SKIP, guided=False), steps=2)
        with load_interventions(model, cfg) as interventions:
            results += compose(model, [song], cfg, longform, seed=1, interventions=interventions)
    plain = compose(model, [song], config(steps=2), longform, seed=1)[0]
    assert torch.equal(results[0], plain)
    assert torch.allclose(results[1], plain, atol=1e-4)
    assert not torch.allclose(results[2], plain, atol=1e-2)


@pytest.mark.parametrize(
    ("knob", "text"),
    [
        ({"weight": float("nan")}, "sampling.knobs.weight must be a finite number"),
        ({"interval": [0.7, 0.2]}, "sampling.knobs.interval must be two times t in"),
        ({"positive": {}}, "positive and negative are the same"),
        ({"positive": {"adapter": "a"}, "negative": {"adapter": "a"}}, "are the same velocity"),
        ({"positive": {"skip": [-1]}}, "numbers of blocks from 0"),
        ({"positive": {"network": "a", "without_adapters": True}}, "leave without_adapters out"),
        ({"positive": {"adaptor": "a"}}, "Did you mean 'adapter'"),
        ({"strength": 2}, "unknown key 'strength'"),
        ({"positive": {"axis": "rythm.pulse"}}, r"sampling.knobs: axis: unknown axis 'rythm.pulse'. Did you mean"),
        ({"positive": {"adapter": "nowhere"}}, "nowhere: no adapter here"),
        ("policy", "takes keys and values"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line_in_python(load, knob, text):
    with pytest.raises((ConfigError, CheckpointError), match=text) as caught:
        api.sample(load(), "rock", seconds=0.5, steps=1, knobs=[knob])
    assert "\n" not in str(caught.value)


def test_what_does_not_go_together_is_refused(load, paths):
    with pytest.raises(ValueError, match="compiled blocks cannot be skipped"):
        config(Knob(1.0, SKIP), compile=True)
    cfg = config(Knob(2.0, KnobVariant(adapter=paths["a"])))
    with pytest.raises(ConfigError, match="is not loaded here"):
        generate(load(), requests(load(), 0.5), cfg, seed=0)
    with pytest.raises(DataError, match="was not embedded with the axis"):
        generate(load(), requests(load(), 0.5), config(Knob(2.0, AXIS)), seed=0)


def test_the_verb_and_the_function_sample_with_knobs(load, paths, bundle, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "a", "text": "rock", "duration_s": 0.5}\n')
    words = [f"prompts={prompts}", f"model.args.bundle={bundle}", "sampling.steps=2", "audio=false"]
    policy, axis = f"{{weight: 1.5, positive: {{adapter: {paths['a']}}}}}", "{positive: {axis: rhythm.pulse}}"
    knobs = f"sampling.knobs=[{policy}, {axis}]"
    for name, more in (("knobs", [knobs]), ("policy", [f"model.args.adapter={paths['a']}"]), (
        "neutral", [f"sampling.knobs=[{{positive: {{adapter: {paths['a']}}}}}]"])):  # fmt: skip
        verb("sample", f"out={tmp_path / name}", *words, *more)
    results = {path.parents[1].name: path.read_bytes() for path in tmp_path.glob("*/latents/*")}
    assert results["neutral"] == results["policy"] != results["knobs"]
    prompt = Prompt(id="a", text="rock", duration_s=0.5)
    (plain,) = api.sample(load(), prompt, steps=2)
    (song,) = api.sample(load(), prompt, steps=2, knobs=[{"weight": 1, "negative": {"skip": 0}}])
    assert not torch.allclose(plain.latents, song.latents, atol=1e-3)
    says = verb(
        "sample",
        f"out={tmp_path / 'e'}",
        *words,
        "sampling.knobs=[{weight: 1, positive: {skip: [9]}}]",
        code=2,
    )
    assert "has the blocks 0 to 1, got 9" in says
