"""Steering: directions that were planted are found, and act only where, when and as long as they should."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.launch import verb
from support.rows import song_row

from diffdpo import api
from diffdpo.errors import CheckpointError, ConfigError, DataError
from diffdpo.knob_parts import load_interventions
from diffdpo.models import MODELS
from diffdpo.recipes.direction import DirectionRun, build_direction
from diffdpo.sampling.activations import PooledActivations, check_site, hook_blocks, move_along
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.directions import (
    Direction,
    Provenance,
    network_kind,
    read_direction,
    save_direction,
)
from diffdpo.sampling.knobs import Knob, KnobVariant
from diffdpo.sampling.longform import LongformConfig, SongRequest, compose
from diffdpo.sampling.probes import (
    FeatureScale,
    Probes,
    feature_scale,
    fit_probes,
    half_mask,
    mean_difference,
    soft_weights,
)
from diffdpo.sampling.request import InitLatents, Request
from diffdpo.sampling.sampler import generate, planned_nfe
from diffdpo.sampling.steering_config import SteeringConfig
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

CHANNELS = 32  # of a block of the bundle's network


def planted(songs=40, channels=64, size=3.0, seed=0):
    """Activations of two classes at two times that differ by `size` along a direction of each of two blocks, in
    noise of 1 over songs; and the directions."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(2, channels, generator=generator), dim=1)
    labels = torch.arange(2 * songs) < songs
    noise = torch.randn(2 * songs, 2, 2, channels, generator=generator)
    offset = 5 * torch.randn(1, 2, 2, channels, generator=generator)  # of a time and a block, in both classes
    features = noise + offset + size * labels[:, None, None, None] * direction
    return features.double(), labels, direction.double()


def test_a_planted_direction_is_recovered():
    features, labels, direction = planted(songs=200)
    for unit in (False, True):
        vectors = mean_difference(features, labels, unit=unit)
        assert torch.nn.functional.cosine_similarity(vectors, direction).min() > 0.95
        norms = vectors.norm(dim=1)
        assert torch.allclose(norms, torch.ones(2).double()) if unit else (norms - 3).abs().max() < 0.4


def test_a_planted_direction_is_recovered_through_a_network():
    """A linear block whose weights add the direction where the input says so."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0)

    class Network(torch.nn.Module):
        _repeated_blocks = ("Linear",)

        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 64), torch.nn.Linear(64, 64)

    network = Network().double()
    with torch.no_grad():
        network.first.weight[:, 0] = 4 * direction
        network.second.weight.copy_(torch.eye(64))
    x = torch.randn(60, 10, 4, generator=generator).double()
    x[:, :, 0] = torch.where(torch.arange(60)[:, None] < 30, 1.0, 0.0)
    pooled = PooledActivations([0, 1], torch.full((60,), 10), 10)
    with hook_blocks([network], pooled.actions(), "blocks"), torch.no_grad():
        network.second(network.first(x))
    vectors = mean_difference(pooled.features(60)[:, None], torch.arange(60) < 30, unit=True)
    assert (vectors @ direction.double()).min() > 0.95


def test_probes_are_right_where_the_classes_differ_and_not_where_they_do_not():
    features, labels, _ = planted(size=4.0)
    features[:, :, 1] = torch.randn(features[:, :, 1].shape, generator=torch.Generator().manual_seed(2))
    half = half_mask([str(k) for k in range(80)], labels.tolist())
    scale = feature_scale(features[half], [0.7, 0.3])
    rows = [((features - scale.center) / scale.scale)[mask].flatten(0, 1) for mask in (half, ~half)]
    sides = [labels[mask].repeat_interleave(2) for mask in (half, ~half)]
    probes = fit_probes(rows[0], sides[0], rows[1], sides[1], heads=1)
    assert probes.accuracy[0] > 0.9
    assert 0.3 < probes.accuracy[1] < 0.7
    assert probes.weights.isfinite().all()
    weights = soft_weights(torch.tensor([[0.5], [0.75], [1.0]]))
    assert weights.flatten().tolist() == pytest.approx([0.0, 0.125, 1.0])
    assert soft_weights(torch.tensor([[0.7, 0.7]])).tolist() == [[1.0, 1.0]]


def test_probes_of_many_channels_are_those_of_the_penalised_likelihood():
    """Newton's method in the span of the rows against plain gradient descent on the weights."""
    generator = torch.Generator().manual_seed(3)
    x, labels = torch.randn(12, 1, 20, generator=generator).double(), torch.arange(12) < 4
    x[:4] += 0.5
    probes = fit_probes(x, labels, x, labels, heads=1)
    w, b = torch.zeros(20).double().requires_grad_(), torch.zeros(()).double().requires_grad_()
    optimizer = torch.optim.LBFGS([w, b], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss():
        optimizer.zero_grad()
        logits = x[:, 0] @ w + b
        weight = torch.where(labels, 12 / 8, 12 / 16).double()
        value = (
            weight * torch.nn.functional.softplus(torch.where(labels, -logits, logits))
        ).sum() + 0.5 * w @ w
        value.backward()
        return value

    optimizer.step(loss)
    assert torch.allclose(probes.weights[0, 0], w.detach(), atol=1e-5)
    assert torch.allclose(probes.bias[0, 0], b.detach(), atol=1e-5)


def test_no_group_is_in_both_halves():
    groups = [f"g{k // 3}" for k in range(60)]
    positive = [k % 2 == 0 or k < 9 for k in range(60)]
    half = half_mask(groups, positive)
    for group in set(groups):
        assert len({bool(half[k]) for k in range(60) if groups[k] == group}) == 1
    assert abs(int(half.sum()) - 30) <= 3
    with pytest.raises(DataError, match="give songs of more prompts"):
        half_mask(["a"] * 10 + ["b"] * 10, [True] * 10 + [False] * 10)


@pytest.fixture(scope="module")
def load(bundle):
    return lambda **args: MODELS["tiny"](bundle=str(bundle), **args).load()


def make_direction(model, blocks=(0, 1), bias=0.0, accuracy=0.9, heads=2):
    """A direction of random vectors whose monitor always says sigmoid(bias)."""
    generator = torch.Generator().manual_seed(1)
    count = len(blocks)
    return Direction(
        vectors=torch.randn(count, CHANNELS, generator=generator),
        weights=torch.ones(count, heads),
        accuracy=torch.full((count, heads), accuracy),
        monitor=Probes(
            weights=torch.zeros(count, heads, CHANNELS // heads),
            bias=torch.full((count, heads), float(bias)),
            accuracy=torch.full((count, heads), accuracy),
        ),
        scale=FeatureScale(
            times=torch.tensor([0.5]).double(),
            center=torch.zeros(1, count, CHANNELS),
            scale=torch.ones(1, count, CHANNELS),
        ),
        provenance=Provenance(network=network_kind(model.network), blocks=tuple(blocks), times=(0.5,)),
    )


@pytest.fixture(scope="module")
def files(load, tmp_path_factory):
    """Directions whose monitor never agrees, agrees at once, and looks at the activations."""
    folder, model = tmp_path_factory.mktemp("directions"), load()
    paths = {name: folder / f"{name}.safetensors" for name in ("low", "high", "real")}
    save_direction(paths["low"], make_direction(model, bias=-3.0))
    save_direction(paths["high"], make_direction(model, bias=3.0))
    real = make_direction(model)
    weights = torch.randn(real.monitor.weights.shape, generator=torch.Generator().manual_seed(4))
    monitor = replace(real.monitor, weights=weights, accuracy=torch.tensor([[0.9, 0.6], [0.5, 0.5]]))
    save_direction(paths["real"], replace(real, monitor=monitor))
    return {name: str(path) for name, path in paths.items()}


def requests(model, *durations):
    prompts = [Prompt(id=f"p{i}", text="rock", duration_s=d) for i, d in enumerate(durations)]
    return [Request(sample_id=prompt.id, row=song_row(model, prompt)) for prompt in prompts]


def songs(model, cfg, wanted=None, **settings):
    with load_interventions(model, cfg) as interventions, torch.no_grad():
        batch = requests(model, 1.0, 0.6) if wanted is None else wanted
        return generate(model, batch, cfg, seed=5, interventions=interventions, **settings)


def config(*entries, **settings):
    return SamplingConfig(
        **{"steps": 4, "steering": [SteeringConfig(**entry) for entry in entries], **settings}
    )


def is_equal(one, two):
    return all(torch.equal(a.latents, b.latents) and a.nfe == b.nfe for a, b in zip(one, two, strict=True))


def hook_counts(model):
    return [len(module._forward_hooks) for module in model.network.modules()]


def test_without_strength_and_outside_its_interval_nothing_changes(load, files):
    model = load()
    plain = songs(model, config())
    assert is_equal(songs(model, config({"direction": files["low"], "alpha": 0.0})), plain)
    assert is_equal(songs(model, config({"direction": files["low"], "interval": [0.05, 0.2]})), plain)
    end = config({"direction": files["low"], "interval": [0.8, 0.8]}, steps=5)  # the ends belong to it
    assert not is_equal(songs(model, end), songs(model, config(steps=5)))
    steered = songs(model, config({"direction": files["low"]}))
    assert [song.nfe for song in steered] == [song.nfe for song in plain] == [8, 8]
    assert planned_nfe(config({"direction": files["low"]})) == 8
    assert not torch.allclose(steered[0].latents, plain[0].latents, atol=1e-2)


def test_the_norm_of_every_frame_is_kept_and_the_direction_is_followed():
    h, vector = torch.randn(2, 5, 8), torch.randn(8)
    moved = move_along(vector, 3.0)(h)
    assert torch.allclose(moved.norm(dim=-1), h.norm(dim=-1), rtol=1e-5)
    cosine = torch.nn.functional.cosine_similarity
    assert (cosine(moved, vector, dim=-1) > cosine(h, vector, dim=-1)).all()
    assert torch.equal(move_along(vector, 1.0)(torch.zeros(1, 2, 8)), torch.zeros(1, 2, 8))


def test_the_branch_without_the_prompt_is_untouched_and_hooks_are_gone(load, files):
    """What the last norm gets from the second block: without a prompt it is what the plain network puts out."""
    model, calls = load(), []
    before = hook_counts(model)
    runs = []
    for alpha in (0.0, 2.0):
        cfg = config({"direction": files["low"], "alpha": alpha, "blocks": [1]}, steps=1)
        norm = model.network.norm_out
        handle = norm.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].clone()))
        songs(model, cfg, wanted=requests(model, 0.5))
        handle.remove()
        runs.append(list(calls))
        calls.clear()
    (plain,), (uncond, cond) = runs  # one pass of both rows; apart: first the plain rows
    assert torch.allclose(uncond, plain[1:], atol=1e-5)
    assert not torch.allclose(cond, plain[:1], atol=1e-2)
    model.network.register_forward_hook(lambda *args: (_ for _ in ()).throw(KeyError("boom")))
    cfg = config({"direction": files["low"], "monitor": True, "every": 1})
    with pytest.raises(KeyError, match="boom"):
        songs(model, cfg)
    assert hook_counts(model)[1:] == before[1:]


def alphas(model, entry, steps=5):
    """The alpha left after each step, and the agreement, of one song."""
    rows = []

    def hook(step, x, t, state):
        rows.append((state["steering.alpha"][0, 0].item(), state["steering.agreement"][0, 0].item()))
        return x, state

    songs(model, config(entry, steps=steps), wanted=requests(model, 0.5), hook=hook)
    return rows


def test_the_monitor_goes_on_below_the_threshold_and_stops_above_it(load, files):
    """The threshold is 0.9 - 0: probabilities of 0.05 are below it, of 0.95 above."""
    model = load()
    low = alphas(model, {"direction": files["low"], "alpha": 2.0, "monitor": True, "every": 2})
    assert [alpha for alpha, _ in low] == [2.0] * 5
    assert low[2][1] == pytest.approx(0.0474, abs=1e-3)
    high = alphas(model, {"direction": files["high"], "alpha": 2.0, "monitor": True, "every": 2})
    assert [alpha for alpha, _ in high] == [2.0, 2.0, 0.0, 0.0, 0.0]
    away = alphas(model, {"direction": files["low"], "alpha": -2.0, "monitor": True, "every": 1})
    assert [alpha for alpha, _ in away] == [-2.0, 0.0, 0.0, 0.0, 0.0]  # away from it: 1 - 0.05 is above
    blind = alphas(model, {"direction": files["high"], "alpha": 2.0, "every": 1})
    assert [alpha for alpha, _ in blind] == [2.0] * 5


def test_the_monitor_lowers_alpha_by_the_change_of_agreement(load, files):
    rows = alphas(load(), {"direction": files["real"], "alpha": 2.0, "monitor": True, "every": 1}, steps=6)
    alpha, last = 2.0, None
    direction = read_direction(Path(files["real"]))
    spread = torch.tensor([0.9, 0.6, 0.5, 0.5]).std(correction=0).item()
    assert direction.threshold() == pytest.approx(0.55 - spread)
    for here, agreement in rows[1:]:
        if alpha:
            alpha = min(2.0, alpha * (1 - (agreement - last if last is not None else 0.0)))
            alpha = 0.0 if agreement >= direction.threshold() else alpha
            last = agreement
        assert here == pytest.approx(alpha, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_every": 2, "guidance_interval": [0.2, 0.8]},
        {"cache_threshold": 0.3, "guidance_scale": 1.0, "steps": 6},
    ],
    ids=str,
)
def test_a_steered_song_does_not_depend_on_its_batch(load, files, settings):
    """One is varied from a song, so that it is at other times, and each has a monitor of its own."""
    model = load()
    cfg = config(
        {"direction": files["real"], "alpha": 1.0, "monitor": True, "every": 2},
        {"direction": files["low"], "alpha": -0.5, "blocks": [0], "interval": [0.3, 0.7]},
        **settings,
    )
    one, two, three = requests(model, 1.0, 0.8, 0.6)
    init = InitLatents(torch.randn(12, model.spec.channels, generator=torch.Generator().manual_seed(1)), 0.6)
    batch = [one, two, replace(three, init=init)]
    for request, song in zip(batch, songs(model, cfg, wanted=batch), strict=True):
        (alone,) = songs(model, cfg, wanted=[request])
        assert torch.allclose(song.latents, alone.latents, atol=5e-5)
        assert song.nfe == alone.nfe


def test_steering_goes_with_knobs_and_with_windows(load, files):
    model = load()
    cfg = config({"direction": files["low"]}, knobs=[Knob(0.5, negative=KnobVariant(skip=[1]), guided=False)])
    assert [song.nfe for song in songs(model, cfg)] == [12, 12]
    (request,) = requests(model, 2.0)
    results = []
    for alpha in (0.0, 1e-7, 1.0):
        cfg = config({"direction": files["real"], "alpha": alpha, "monitor": True, "every": 1}, steps=2)
        with load_interventions(model, cfg) as interventions:
            longform = LongformConfig(method="joint", window_s=1.0, overlap_s=0.3)
            song = SongRequest(sample_id="a", row=request.row)
            results += compose(model, [song], cfg, longform, seed=1, interventions=interventions)
    assert torch.allclose(results[0], results[1], atol=1e-4)
    assert not torch.allclose(results[0], results[2], atol=1e-2)


HEADS = "self_attn.o_proj"


def test_what_the_projection_of_attention_takes_in_is_read_and_moved(load):
    """Projected, what is read is what attention puts out, before and after it was moved; the hook is gone then."""
    model = load()
    attention = model.network.transformer_blocks[1].self_attn
    inputs, outputs = [], []
    handle = attention.register_forward_hook(lambda module, args, output: outputs.append(output))
    vector = torch.randn(CHANNELS, generator=torch.Generator().manual_seed(2))

    def read(h):
        inputs.append(h)
        return move_along(vector, 2.0)(h)

    with hook_blocks([model.network], {1: read}, "blocks", HEADS):
        songs(model, config(steps=1), wanted=requests(model, 0.5))
    handle.remove()
    assert torch.equal(attention.o_proj(move_along(vector, 2.0)(inputs[0])), outputs[0])
    assert not attention.o_proj._forward_pre_hooks
    with pytest.raises(ConfigError, match=r"no part 'heads'; those behind the heads .* self_attn\.o_proj"):
        check_site(model.network, "heads", "site")


def test_the_probe_of_a_head_is_right_where_that_head_differs():
    features, labels, _ = planted(size=0.0)
    features[labels, :, :, 16:32] += 3.0  # the second of four heads
    half = half_mask([str(k) for k in range(80)], labels.tolist())
    cfg = DirectionRun(positive="", negative="", out="", heads=4, site=HEADS, times=[0.7, 0.3])
    direction = build_direction(features, labels, half, cfg)
    assert (direction.weights.argmax(1) == 1).all()
    assert (direction.accuracy[:, 1] > 0.95).all()
    assert (direction.accuracy[:, [0, 2, 3]] < 0.8).all()


def test_directions_of_two_sites_add_up_and_each_song_is_its_own(load, tmp_path):
    model = load()
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("heads", "block")]
    for path, site in zip(paths, (HEADS, ""), strict=True):
        direction = make_direction(model)
        weights = torch.randn(direction.monitor.weights.shape, generator=torch.Generator().manual_seed(4))
        save_direction(
            Path(path),
            replace(
                direction,
                monitor=replace(direction.monitor, weights=weights),
                provenance=replace(direction.provenance, site=site),
            ),
        )
    entries = [{"direction": path, "monitor": True, "every": 2, "alpha": 0.5} for path in paths]
    plain = songs(model, config())
    assert is_equal(songs(model, config(*({**entry, "alpha": 0.0} for entry in entries))), plain)
    both, heads, block = (songs(model, config(*some)) for some in (entries, entries[:1], entries[1:]))
    for one, other in ((both, heads), (both, block), (heads, block), (heads, plain)):
        assert not torch.allclose(one[0].latents, other[0].latents, atol=1e-3)
    for request, song in zip(requests(model, 1.0, 0.6), both, strict=True):
        (alone,) = songs(model, config(*entries), wanted=[request])
        assert torch.allclose(song.latents, alone.latents, atol=5e-5)


def test_directions_survive_their_file_and_belong_to_their_network(load, files, tmp_path):
    model, path = load(), tmp_path / "d.safetensors"
    direction = make_direction(model, blocks=(1,))
    save_direction(path, direction)
    again = read_direction(path)
    assert again.provenance == direction.provenance
    assert torch.equal(again.vectors, direction.vectors)
    assert again.threshold() == direction.threshold()
    for entry, text in (
        ({"blocks": [0]}, "holds the blocks 1, not 0"),
        ({"direction": "nowhere.safetensors"}, "make it with `diffdpo direction fit`"),
    ):
        with pytest.raises(DataError, match=text):
            songs(model, config({"direction": str(path), **entry}))
    save_direction(path, replace(direction, provenance=replace(direction.provenance, network="Other/24")))
    with pytest.raises(DataError, match="a direction of Other/24"):
        songs(model, config({"direction": str(path)}))
    save_direction(path, replace(direction, weights=torch.zeros_like(direction.weights)))
    with pytest.raises(DataError, match="the weights of block 1, whose probes were the worst, are 0"):
        songs(model, config({"direction": str(path)}))
    save_direction(path, replace(direction, vectors=direction.vectors[:, : CHANNELS // 2]))
    with pytest.raises(ConfigError, match=f"has {CHANNELS // 2} channels, the network {CHANNELS}"):
        songs(model, config({"direction": str(path)}))
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"d\.safetensors"):
        songs(model, config({"direction": str(path)}))
    with pytest.raises(ConfigError, match="is not loaded here"):
        generate(model, requests(model, 0.5), config({"direction": files["low"]}), seed=0)


@pytest.mark.parametrize(
    ("entry", "settings", "text"),
    [
        ({"direction": ""}, {}, "every entry needs a direction"),
        ({"alpha": float("inf")}, {}, "sampling.steering.alpha must be a finite number"),
        ({"interval": [0.9, 0.1]}, {}, "sampling.steering.interval must be two times"),
        ({"blocks": [-1]}, {}, "blocks are numbers from 0"),
        ({"every": 0}, {}, "sampling.steering.every must be at least 1"),
        ({"alpa": 1}, {}, "Did you mean 'alpha'"),
        ({}, {"compile": True}, "compiled blocks cannot be steered"),
        ({"monitor": True}, {"knobs": [{"negative": {"skip": [0]}}]}, "the monitor watches one network"),
    ],
)
def test_what_cannot_be_meant_is_one_line(load, files, entry, settings, text):
    with pytest.raises(ConfigError, match=text) as caught:
        api.sample(load(), "rock", steps=1, steering=[{"direction": files["low"], **entry}], **settings)
    assert "\n" not in str(caught.value)


def test_a_direction_is_fitted_from_songs_or_prompts_and_steers_the_verb(bundle, tmp_path):
    words = [f"model.args.bundle={bundle}", "sampling.steps=1"]
    for name, text in (("a", "loud rock drums"), ("b", "ambient pads")):
        rows = [{"id": f"p{k}", "text": f"{text} {k}", "duration_s": 0.4, "group": f"g{k}"} for k in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        verb("sample", f"out={tmp_path / name}", f"prompts={tmp_path / name}.jsonl", *words, "audio=false")
    outs = [tmp_path / "songs.safetensors", tmp_path / "prompts.safetensors"]
    for out, suffix in zip(outs, ("", ".jsonl"), strict=True):
        says = verb(
            "direction", "fit", f"positive={tmp_path / 'a'}{suffix}", f"negative={tmp_path / 'b'}{suffix}",
            f"out={out}", *words, "times=[0.6,0.3]", "heads=2",
        )  # fmt: skip
        assert "block 1: probes" in says
    out = tmp_path / "h.safetensors"
    sides = [f"{side}={tmp_path / name}" for side, name in (("positive", "a"), ("negative", "b"))]
    verb("direction", "fit", *sides, f"out={out}", *words, "heads=2", f"site={HEADS}")
    heads = read_direction(out)
    assert (heads.provenance.site, heads.weights.shape[1]) == (HEADS, 2)
    assert not torch.allclose(heads.vectors, read_direction(outs[0]).vectors)
    one, two = (read_direction(out) for out in outs)
    assert torch.allclose(one.vectors, two.vectors, atol=1e-5)  # the same songs, from disk and sampled again
    assert one.provenance.counts == (4, 4)
    assert one.provenance.times == (0.6, 0.3)
    assert one.provenance.data == two.provenance.data
    steering = f"sampling.steering=[{{direction: {outs[0]}, alpha: 2, monitor: true, every: 1}}]"
    prompts = f"prompts={tmp_path / 'a.jsonl'}"
    verb("sample", f"out={tmp_path / 'steered'}", prompts, *words, "audio=false", steering)
    plain, steered = (
        next(iter(sorted((tmp_path / name / "latents").iterdir()))) for name in ("a", "steered")
    )
    assert plain.read_bytes() != steered.read_bytes()
    says = verb("direction", "fit", "positive=no", f"negative={tmp_path / 'b'}", "out=x.safetensors", code=2)
    assert "no such folder of songs or file of prompts" in says
    says = verb("direction", "fit", "positive=no", "negative=no", "out=x", code=2)
    assert "must end in .safetensors" in says
