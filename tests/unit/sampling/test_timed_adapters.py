"""Adapters with an interval of t and a choice of layers: neutral values change no bit, outside is the base."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.rows import song_row

from diffdpo import flow
from diffdpo.config import build_config
from diffdpo.errors import CheckpointError, ConfigError
from diffdpo.models import MODELS
from diffdpo.models.adapter_config import AdapterConfig, block_names, check_untimed
from diffdpo.models.adapter_schedule import timed_adapters
from diffdpo.models.adapters import read_adapter, save_adapter
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.parts import build_model
from diffdpo.recipes.next_model import next_model
from diffdpo.recipes.round import RoundRun
from diffdpo.recipes.train import TrainRun
from diffdpo.registry import Choice
from diffdpo.sampling.conditions import encode_conditions
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.noise import start_noise
from diffdpo.sampling.request import InitLatents, Request
from diffdpo.sampling.sampler import conditioned_velocity, sample_batch
from diffdpo.sampling.velocity import initial_state
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.lora import add_lora
from diffdpo.training.session import check_config
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

INPUTS = ("text_fusion_linears.0.0", "input_embed.proj")
"""Layers of the bundle's network that `prepare` runs once a song."""


def write_adapter(bundle, folder, seed, targets=DiffRhythm.lora_targets, **peft):
    """A LoRA of random factors, with layers of `prepare` among its targets."""
    network = MODELS["tiny"](bundle=str(bundle)).load().network
    lora = LoraConfig(rank=3, alpha=5.0, targets=[*targets, *INPUTS], peft=peft)
    add_lora(network, lora, (), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    save_adapter(network, network.state_dict(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def paths(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timed")
    return [write_adapter(bundle, folder / name, seed) for seed, name in enumerate("ab", 1)]


@pytest.fixture(scope="module")
def dora(bundle, tmp_path_factory):
    return write_adapter(bundle, tmp_path_factory.mktemp("dora"), 3, use_dora=True)


@pytest.fixture(scope="module")
def load(bundle):
    """A model with adapters in the short form, and in the long one; loaded once, since no test changes it."""
    models = {}

    def load(adapter="", *adapters):
        args = {"bundle": str(bundle), "adapter": adapter, "adapters": adapters}
        return models.setdefault(str(args), models.get(str(args)) or build_model(Choice("tiny", args)))

    return load


def requests(model, *durations):
    prompts = [Prompt(id=f"p{i}", text="rock", duration_s=d) for i, d in enumerate(durations)]
    return [Request(sample_id=prompt.id, row=song_row(model, prompt)) for prompt in prompts]


def velocity_at(model, t, **settings):
    """The sampler's velocity of two songs, at one time or one for each, on a fixed x."""
    songs, cfg = requests(model, 1.0, 0.6), SamplingConfig(steps=4, **settings)
    with torch.no_grad():
        conditions = encode_conditions(model, songs, cfg.build_guidance(), torch.device("cpu"))
        x = torch.randn(2, conditions.length, model.spec.channels, generator=torch.Generator().manual_seed(0))
        state = initial_state(torch.arange(2), x, cfg.build_guidance(), cached=False)
        velocity = conditioned_velocity(model, conditions, cfg)
        times = torch.tensor(t, dtype=torch.float64).expand(2)
        v = velocity(x, times, state)[0]
    return v * flow.mask_from_frames(torch.tensor([s.row.frames for s in songs]), x.shape[1])[..., None]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def is_same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_neutral_values_are_the_short_form_bit_for_bit(load, paths):
    a, b = paths
    short = load(f"{a}@0.7,{b}")
    for adapters in (
        [{"path": a, "strength": 0.7}, {"path": b}],
        [{"path": a, "strength": 0.7, "interval": [0, 1], "layers": ["*"]}, {"path": b, "layers": "*"}],
    ):
        model = load("", *adapters)
        assert timed_adapters(model.network) is None
        assert is_same(weights(model), weights(short))
    assert is_same(weights(load(f"{a}@0.7", {"path": b})), weights(short))


@pytest.mark.parametrize("settings", [{"guidance_scale": 1.0}, {}, {"precision": "bf16"}], ids=str)
def test_outside_the_interval_is_the_base_bit_for_bit_and_inside_the_adapter(load, paths, settings):
    base, merged = load(), load(f"{paths[0]}@0.7")
    timed = load("", {"path": paths[0], "strength": 0.7, "interval": [0.25, 0.75]})
    for t in (0.0, 0.1, 0.2499, 0.7501, 1.0):
        assert torch.equal(velocity_at(timed, t, **settings), velocity_at(base, t, **settings))
    for t in (0.25, 0.5, 0.75):
        inside, whole = velocity_at(timed, t, **settings), velocity_at(merged, t, **settings)
        change = (whole - velocity_at(base, t, **settings)).abs().max()
        assert change > 0.1
        tolerance = 0.1 if settings.get("precision") else 1e-4
        assert (inside - whole).abs().max() < tolerance * change


def test_a_song_is_solved_with_the_network_of_its_times(load, paths):
    """Euler by hand: the merged network inside the interval, the base outside."""
    cfg = SamplingConfig(steps=8, guidance_scale=1.0, solver=Choice("euler"))
    base, merged = load(), load(paths[0])
    (song,) = requests(base, 1.0)
    frames, count = song.row.frames, torch.tensor([song.row.frames])
    x = start_noise([song], 5, frames, base.spec.channels)
    for step in range(8):
        t = torch.tensor([1 - step / 8], dtype=torch.float64)
        model = merged if 0.3 <= float(t) <= 0.7 else base
        with torch.no_grad():
            x = x - model.velocity(model.network, x, t, base.condition([song.row], frames), count) / 8
    timed, never, plain = (
        sample_batch(model, [song], cfg, seed=5)[0]
        for model in (
            load("", {"path": paths[0], "interval": [0.3, 0.7]}),
            load("", {"path": paths[0], "interval": [0.0, 0.1]}),  # the last evaluation is at 1/8
            base,
        )
    )
    assert torch.allclose(timed, x[0], atol=1e-4)
    assert not torch.allclose(timed, plain, atol=1e-2)
    assert torch.equal(never, plain)


def test_songs_at_different_times_in_one_batch_are_each_as_alone(load, paths):
    """Variations begin at other times, so that some rows are inside the interval while others are not."""
    model = load("", {"path": paths[0], "interval": [0.3, 0.7]}, {"path": paths[1], "interval": [0.5, 1.0]})
    cfg = SamplingConfig(steps=6)
    one, two, three = requests(model, 1.0, 0.6, 0.8)
    init = torch.randn(two.row.frames, model.spec.channels, generator=torch.Generator().manual_seed(1))
    songs = [one, replace(two, init=InitLatents(init, 0.6)), three]
    together = sample_batch(model, songs, cfg, seed=3)
    for song, latents in zip(songs, together, strict=True):
        assert torch.allclose(sample_batch(model, [song], cfg, seed=3)[0], latents, atol=2e-5)
    base, at_once = load(), velocity_at(model, [0.1, 0.6])
    assert torch.allclose(at_once[0], velocity_at(base, [0.1, 0.1])[0], atol=1e-5)
    assert torch.allclose(at_once[1], velocity_at(model, [0.6, 0.6])[1], atol=1e-5)


def test_several_adapters_add_where_their_intervals_overlap(load, paths):
    a, b = paths
    model = load(
        "",
        {"path": a, "strength": 0.5, "interval": [0.0, 0.6]},
        {"path": b, "strength": -0.5, "interval": [0.4, 1.0]},
    )
    base = load()
    for t, text in ((0.2, f"{a}@0.5"), (0.5, f"{a}@0.5,{b}@-0.5"), (0.8, f"{b}@-0.5")):
        whole = velocity_at(load(text), t)
        change = (whole - velocity_at(base, t)).abs().max()
        assert (velocity_at(model, t) - whole).abs().max() < 1e-4 * change
    mixed = load(f"{a}@0.5", {"path": b, "interval": [0.4, 1.0]})  # one merged, one in its interval
    assert torch.equal(velocity_at(mixed, 0.2), velocity_at(load(f"{a}@0.5"), 0.2))


def test_layers_choose_where_an_adapter_acts(load, paths):
    base, whole = weights(load()), weights(load(paths[0]))
    blocks = block_names(load().network)
    assert len(blocks) == 2
    for patterns, is_chosen in (
        (["*"], lambda name: True),
        ([], lambda name: False),
        (["0"], lambda name: name.startswith(blocks[0])),
        ([1], lambda name: name.startswith(blocks[1])),
        (["0-1", "input_embed"], lambda name: name.startswith((*blocks, "input_embed"))),
        (["q_proj", "*.up_proj"], lambda name: ".q_proj" in name or ".up_proj" in name),
        ([blocks[1]], lambda name: name.startswith(blocks[1])),
    ):
        own = weights(load("", {"path": paths[0], "layers": patterns}))
        assert all(torch.equal(own[n], (whole if is_chosen(n) else base)[n]) for n in base), patterns
    in_block = load("", {"path": paths[0], "layers": "0"})
    timed = load("", {"path": paths[0], "layers": "0", "interval": [0.2, 0.8]})
    assert torch.allclose(velocity_at(timed, 0.5), velocity_at(in_block, 0.5), atol=1e-4)
    assert torch.equal(velocity_at(timed, 0.1), velocity_at(load(), 0.1))


def test_a_dora_in_an_interval_acts_alone_and_whole(load, paths, dora):
    timed, merged = load("", {"path": dora, "interval": [0.2, 0.8]}), load(dora)
    change = (velocity_at(merged, 0.5) - velocity_at(load(), 0.5)).abs().max()
    assert (velocity_at(timed, 0.5) - velocity_at(merged, 0.5)).abs().max() < 1e-4 * change
    assert torch.equal(velocity_at(timed, 0.9), velocity_at(load(), 0.9))
    for adapters in (
        [{"path": dora, "interval": [0.2, 0.8], "strength": 0.5}],
        [{"path": dora}, {"path": paths[0], "interval": [0.2, 0.8]}],
        [{"path": dora, "interval": [0.2, 0.8]}, {"path": paths[0]}],
    ):
        with pytest.raises(CheckpointError, match="a DoRA among adapters that are not merged"):
            load("", *adapters)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"interval": [0.8, 0.2]}, "two times t in"),
        ({"interval": [0.2]}, "two times t in"),
        ({"interval": [0, 1.5]}, "two times t in"),
        ({"path": ""}, "every adapter needs a path"),
        ({"strength": float("nan")}, "strength"),
        ({"intervall": [0, 1]}, "Did you mean 'interval'"),
        ({"layers": "q_prj"}, r"no layer 'q_prj'\. Did you mean 'q_proj'\?"),
        ({"layers": "7"}, "no layer '7'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(load, paths, entry, text):
    with pytest.raises((ConfigError, CheckpointError), match=text) as caught:
        load("", {"path": paths[0], **entry})
    assert "\n" not in str(caught.value)


def test_training_refuses_an_interval_before_and_after_loading(load, paths, bundle, tmp_path):
    entry = {"path": paths[0], "interval": [0.2, 0.8]}
    choice = Choice("tiny", {"bundle": str(bundle), "adapters": [entry]})
    with pytest.raises(ConfigError, match="interval of t is for sampling"):
        TrainRun(out=str(tmp_path), model=choice).check_parts()
    with pytest.raises(ConfigError, match="at some times t only"):
        check_config(TrainConfig(), load("", entry))
    for neutral in ({"path": "a"}, {"path": "a", "interval": [0, 1]}, AdapterConfig("a")):
        check_untimed(Choice("tiny", {"adapters": [neutral]}))


def test_rounds_put_what_they_trained_behind_the_long_form(paths):
    start = Choice("tiny", {"adapters": [{"path": paths[0], "layers": ["0"]}]})
    after = next_model(start, paths[1], lora=True)
    assert after.args == {"adapters": [{"path": paths[0], "layers": ["0"]}, {"path": paths[1]}]}
    assert next_model(start, paths[1], lora=False).args == {"network": paths[1]}


def test_a_round_lets_its_adapter_act_in_an_interval(load, paths, bundle):
    start = Choice("tiny", {"bundle": str(bundle), "adapter": paths[0]})
    after = next_model(start, paths[1], lora=True, strength=0.5, interval=[0, 0.9])
    assert after.args["adapter"] == paths[0]
    assert after.args["adapters"] == [{"path": paths[1], "strength": 0.5, "interval": [0, 0.9]}]
    assert build_model(after).network is not None
    assert next_model(start, paths[1], lora=True, interval=(0.0, 1.0)) == next_model(
        start, paths[1], lora=True
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["adapter_interval=[0.9, 0.1]"], "two times t"),
        (["adapter_interval=[0.5]"], "two times t"),
        (["adapter_interval=[0, 0.9]"], "set train.train.lora"),
        (["adapter_interval=[0, 0.9]", "train.train.lora.rank=2", "rounds=2"], "rounds=1"),
        (
            [
                "adapter_interval=[0, 0.9]",
                "train.train.lora={peft: {use_dora: true}}",
                "adapter_strength=0.5",
            ],
            "DoRA in an interval has strength 1",
        ),
    ],
)
def test_a_round_whose_adapter_cannot_act_in_an_interval_is_refused(words, text):
    with pytest.raises(ConfigError, match=text):
        build_config(
            RoundRun, None, ["out=o", "mining_prompts=m", "evaluation_prompts=e", *words]
        ).check_parts()


def test_an_adapter_in_an_interval_takes_the_memory_of_its_factors(load, paths):
    timed = load("", {"path": paths[0], "interval": [0.2, 0.8]}).network
    extra = sum(p.numel() for p in timed.parameters()) - sum(p.numel() for p in load().network.parameters())
    assert extra == sum(tensor.numel() for tensor in read_adapter(Path(paths[0]))[0].values())
