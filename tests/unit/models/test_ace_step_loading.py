"""ACE-Step checkpoints: both layouts are one model, and what is no such checkpoint is refused in one line."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ace_step import CHANNELS, CODES, parts, write_diffusers, write_original, write_planner
from support.model_contract import distance, draw, noise, one_line_error
from torch._subclasses.fake_tensor import FakeTensorMode

from diffdpo.errors import CheckpointError, ConfigError, DataError
from diffdpo.models import MODELS
from diffdpo.models.ace_step.encoders import AceStepEncoders
from diffdpo.models.ace_step.layouts import ace_step_folder, diffusers_names, original_names
from diffdpo.models.ace_step.text import plain_lyrics
from diffdpo.models.adapters import write_adapter
from diffdpo.models.base import EncodesSounds, Inpaints, Plans, supports
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import prompt_request
from diffdpo.sampling.sampler import sample_batch
from diffdpo.sounds import sound_of
from diffdpo.types import Plan, Prompt

pytestmark = pytest.mark.slow

PROMPT = Prompt(id="a", text="slow rock", lyrics="[verse]\nla", language="en", duration_s=1.0)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Both layouts of one model, and a planner. Read only."""
    folder = tmp_path_factory.mktemp("ace-step")
    write_diffusers(folder / "diffusers")
    write_original(folder / "original")
    write_planner(folder / "planner")
    return folder


@pytest.fixture(scope="module")
def model(shared):
    return load(shared / "diffusers")


def load(checkpoint, **arguments):
    return MODELS["ace_step"](checkpoint=str(checkpoint), **arguments).load()


def edit(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path)


def test_the_original_layout_is_the_same_model(shared, model):
    original = load(shared / "original" / "acestep-v15-base", variant="base")
    ours, theirs = original.network.state_dict(), model.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(original.null, model.null)
    assert torch.equal(original.silence, model.silence)
    one, other = original.embed(PROMPT), model.embed(PROMPT)
    assert all(torch.equal(one[name], other[name]) for name in one)
    codes = torch.arange(CODES)
    hints = [m.embed_plan(Plan(planner=m.planner, tensors={"codes": codes})) for m in (original, model)]
    assert torch.equal(hints[0]["plan.hints"], hints[1]["plan.hints"])
    sound = [m.decode(draw(20, CHANNELS)).samples for m in (original, model)]
    assert (sound[0] == sound[1]).all()


def test_a_network_wider_than_its_condition_has_the_sizes_of_its_weights(tmp_path):
    """As in XL: another width, another depth, more heads, a condition of another width than the network."""
    sizes = {"hidden_size": 48, "encoder_hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 8}
    model = load(write_original(tmp_path, sizes=sizes))
    config = model.network.config
    assert {key: config[key] for key in sizes} == sizes
    assert config["num_key_value_heads"] == 2
    embedding = model.embed(PROMPT)
    assert embedding["head"].shape[1] == 32


def test_names_of_the_original_map_one_to_one(shared):
    folder = ace_step_folder(str(shared / "diffusers"))
    for part in ("transformer", "audio_tokenizer", "audio_token_detokenizer"):
        state = folder.read(part).state
        tensors = original_names(state, part)
        assert len(tensors) == len(state)
        prefix = next(iter(tensors)).split(".")[0] + "."
        back = diffusers_names(tensors, prefix)
        assert back.keys() == state.keys()
        assert all(back[name] is state[name] for name in state)
    names = original_names(folder.read("transformer").state, "transformer")
    assert "decoder.layers.0.self_attn.q_proj.weight" in names
    assert "decoder.layers.0.cross_attn.o_proj.weight" in names
    assert "decoder.proj_in.1.weight" in names
    assert "decoder.proj_out.1.bias" in names


def test_shards_are_one_file(shared, model, tmp_path):
    folder = write_diffusers(tmp_path / "sharded")
    part = folder / "transformer"
    state = load_file(part / WEIGHTS)
    (part / WEIGHTS).unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for shard, keys in shards.items():
        save_file({key: state[key] for key in keys}, part / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    network = load(folder).network.state_dict()
    assert all(torch.equal(tensor, network[name]) for name, tensor in model.network.state_dict().items())


def test_published_sizes_of_the_encoders():
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder

    with torch.device("meta"):
        encoder = AceStepConditionEncoder()
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(0.608e9, rel=2e-3)
    state = encoder.state_dict()
    assert state["silence_latent"].shape == (1, 15000, 64)
    assert state["null_condition_emb"].shape == (1, 1, 2048)
    assert original_names(state, "condition_encoder").keys() >= {
        "encoder.text_projector.weight",
        "encoder.lyric_encoder.layers.7.self_attn.q_proj.weight",
        "encoder.timbre_encoder.layers.3.mlp.down_proj.weight",
    }


def test_weights_of_another_variant_are_refused(shared, tmp_path):
    folder = write_diffusers(tmp_path, is_turbo=True, model_version="turbo")
    with one_line_error("weights of ACE-Step turbo, the configuration is for base", CheckpointError):
        load(folder, variant="base")
    with one_line_error("weights of ACE-Step base, the configuration is for turbo", CheckpointError):
        load(shared / "original" / "acestep-v15-base", variant="turbo")
    with one_line_error("weights of ACE-Step turbo", CheckpointError):
        load(shared / "diffusers", network=str(folder / "transformer"), variant="sft")
    assert load(folder, variant="turbo").spec.times[1] == pytest.approx(0.9545, abs=1e-4)


def test_a_turbo_is_neither_guided_nor_sampled_at_other_times(tmp_path):
    model = load(write_diffusers(tmp_path, is_turbo=True))
    song = prompt_request(PROMPT, "a", 25, model.embed)
    cfg = SamplingConfig(steps=8, solver=Choice("euler"), guidance_scale=1.0)
    with one_line_error("guidance_scale=1"):
        sample_batch(model, [song], replace(cfg, guidance_scale=7.0), seed=0)
    with one_line_error("8 steps only, sampling.steps is 20; set sampling.steps=8", ConfigError):
        sample_batch(model, [song], replace(cfg, steps=20), seed=0)
    assert sample_batch(model, [song], cfg, seed=0)[0].shape == (25, CHANNELS)


def test_without_the_latents_of_silence_nothing_loads(tmp_path):
    original = write_original(tmp_path / "original")
    (original / "silence_latent.pt").unlink()
    with one_line_error("silence_latent.pt: no such file; .* songs without them drone", CheckpointError):
        load(original)
    folder = write_diffusers(tmp_path / "diffusers")
    path = folder / "condition_encoder" / WEIGHTS
    for change in (lambda state: state["silence_latent"].zero_(), lambda state: state.pop("silence_latent")):
        edit(path, change)
        with one_line_error("hold no silence_latent, or zeros for it", CheckpointError):
            load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: s.update({"mystery.weight": torch.zeros(2)}),
            "of no part of ACE-Step 1.5, first mystery.weight",
        ),
        (lambda s: s.update({"decoder.more": torch.zeros(2)}), "1 unexpected, first more"),
        (lambda s: s.pop("decoder.time_embed.linear_1.bias"), "1 missing, first time_embed.linear_1.bias"),
        (lambda s: s.pop("decoder.proj_in.1.weight"), "transformer is not that of ACE-Step 1.5"),
        (
            lambda s: s.update({"decoder.norm_out.weight": torch.zeros(3)}),
            r"misshapen, first norm_out.weight \(3,\)",
        ),
        (lambda s: s.pop("null_condition_emb"), "holds no null_condition_emb"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("decoder.")], "holds no transformer"),
    ],
    ids=["foreign", "unexpected", "missing", "sizeless", "misshapen", "nullless", "partless"],
)
def test_foreign_and_damaged_weights_are_refused(tmp_path, change, says):
    folder = write_original(tmp_path)
    edit(folder / "model.safetensors", change)
    with one_line_error(says, CheckpointError):
        load(folder)


def test_places_that_hold_no_checkpoint_are_refused(shared, tmp_path):
    with one_line_error("no such folder; expected ACE-Step 1.5", CheckpointError):
        load(tmp_path / "nowhere")
    with one_line_error("neither the original layout", CheckpointError):
        load(tmp_path)
    with one_line_error("expected a Qwen3, found model_type=None", CheckpointError):
        load(shared / "diffusers", text_encoder=str(shared / "diffusers" / "vae")).embed(PROMPT)
    with pytest.raises(ValueError, match="needs a checkpoint"):
        MODELS["ace_step"]()


def test_an_adapter_of_another_model_is_refused(shared, tmp_path):
    state = {f"layers.0.attn.q_proj.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    write_adapter(state, {}, tmp_path)
    with one_line_error("an adapter of another model", CheckpointError):
        load(shared / "diffusers", adapter=str(tmp_path))


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (replace(PROMPT, text="x" * 300), r"its text takes \d+ tokens, ACE-Step reads 256; shorten it"),
        (replace(PROMPT, lyrics="la la\n" * 900), r"its lyrics takes \d+ tokens, ACE-Step reads 2048"),
        (replace(PROMPT, duration_s=601), "601 s is longer than ACE-Step's 600 s; ask for less"),
        (replace(PROMPT, language="tlh"), "does not sing language 'tlh'"),
        (PROMPT.with_control("bpm", 25), "bpm 25 is outside ACE-Step's 30 to 300"),
        (PROMPT.with_control("metre", "7/8"), "knows no metre '7/8', choose one of 2/4, 3/4, 4/4, 6/8"),
        (PROMPT.with_control("key", "H minor"), "knows no key 'H minor'; write it as in 'F# minor'"),
        (PROMPT.with_control("sections", ((0.0, "verse"),)), "no control 'sections'"),
    ],
    ids=["text", "lyrics", "duration", "language", "bpm", "metre", "key", "sections"],
)
def test_prompts_that_it_does_not_understand_are_refused(model, prompt, says):
    with one_line_error(f"prompt 'a': .*{says}"):
        model.embed(prompt)


def test_a_song_longer_than_ten_minutes_is_refused(model):
    frames = model.spec.frames(601.0)
    with one_line_error("601.00 s is longer than this model's 600.00 s"):
        sample_batch(model, [prompt_request(PROMPT, "a", frames, model.embed)], SamplingConfig(), seed=0)


def test_languages_of_countries_are_languages(model):
    at, de = (model.embed(replace(PROMPT, language=language)) for language in ("de-AT", "de"))
    assert torch.equal(at["head"], de["head"])
    assert not torch.equal(model.embed(PROMPT)["head"][:9], de["head"][:9])


def test_lyrics_are_read_as_lines_without_times():
    assert plain_lyrics(None) == ""
    assert plain_lyrics(" ") == "[Instrumental]"
    assert plain_lyrics("[verse]\nla\n\nla") == "[verse]\nla\n\nla"
    timed = "[ti:Song]\n[00:01.00]one <00:01.50>two\n[00:03.00][00:09.00]three"
    assert plain_lyrics(timed) == "one two\nthree"


@pytest.fixture(scope="module")
def planned(shared):
    return load(shared / "diffusers", planner=str(shared / "planner"))


def test_a_candidate_has_codes_of_its_own_five_a_second(planned):
    def codes(seed, frames=40):
        plan = planned.plan(PROMPT, frames, torch.Generator().manual_seed(seed))
        assert plan.planner == planned.planner
        return plan.tensors["codes"]

    assert torch.equal(codes(0), codes(0))
    assert not torch.equal(codes(0), codes(1))
    assert [len(codes(0, frames)) for frames in (40, 41, 1)] == [8, 9, 1]
    assert all(0 <= code < CODES for code in codes(2).tolist())


def test_greedy_codes_are_those_of_the_language_model_itself(planned):
    """Almost no temperature: the most probable code at each step, by a pass over the whole sequence each time."""
    from diffdpo.models.ace_step.planner import planner_prompt
    from diffdpo.models.ace_step.text import prompt_texts

    planned.plan(PROMPT, 5, torch.Generator().manual_seed(0))
    planner = replace(planned.memory["planner"], temperature=1e-4)
    texts = prompt_texts(PROMPT)
    codes = planner.codes(texts, 6, torch.Generator().manual_seed(0))
    ids = planner.tokenizer.encode(planner_prompt(texts)).ids
    for code in codes.tolist():
        with torch.no_grad():
            logits = planner.model(input_ids=torch.tensor([ids])).logits[0, -1]
        best = max(range(CODES), key=lambda c: float(logits[planner.code_ids[c]]))
        assert code == best
        ids.append(int(planner.code_ids[code]))


def test_codes_of_another_planner_or_outside_the_codebook_are_refused(shared, planned, tmp_path):
    plan = planned.plan(PROMPT, 40, torch.Generator().manual_seed(0))
    retrained = load(shared / "diffusers", planner=str(write_planner(tmp_path / "retrained", seed=1)))
    assert len(retrained.plan(PROMPT, 40, torch.Generator().manual_seed(0)).tensors["codes"]) == 8
    assert retrained.planner != planned.planner
    with one_line_error("audio codes of planner .* set model.args.planner"):
        retrained.embed_plan(plan)
    with one_line_error("audio codes of planner"):
        load(shared / "diffusers").embed_plan(plan)
    for codes in (torch.tensor([CODES]), torch.tensor([-1]), torch.zeros(0, dtype=torch.long)):
        with one_line_error(f"from 0 to {CODES - 1}"):
            planned.embed_plan(Plan(planner=planned.planner, tensors={"codes": codes}))


def test_planners_that_do_not_fit_are_refused(shared, tmp_path):
    folder = write_planner(tmp_path / "planner")
    text = (folder / "tokenizer.json").read_text().replace("audio_code_7|", "audio_code_x7|")
    (folder / "tokenizer.json").write_text(text)
    model = load(shared / "diffusers", planner=str(folder))
    with one_line_error(r"lacks <\|audio_code_7\|>", CheckpointError):
        model.plan(PROMPT, 5, torch.Generator())
    bare = write_diffusers(tmp_path / "bare")
    (bare / "audio_token_detokenizer" / "config.json").unlink()
    with one_line_error("holds no audio tokenizer", CheckpointError):
        load(bare, planner=str(folder))


def test_prompts_are_encoded_once_and_their_encoders_leave_memory(shared, tmp_path):
    model = load(shared / "diffusers", planner=str(shared / "planner"))
    assert not model.memory
    store = EmbeddingStore(model, tmp_path)
    embedding = store.embed(PROMPT)
    assert isinstance(model.memory["encoders"], AceStepEncoders)
    model.place("encoders", None)
    assert not model.memory
    again = EmbeddingStore(model, tmp_path).embed(PROMPT)
    assert all(torch.equal(again[name], embedding[name]) for name in embedding)
    with one_line_error("the encoders were freed", DataError):
        model.plan(PROMPT, 5, torch.Generator())


def test_a_cache_of_embeddings_is_of_its_encoders(shared, tmp_path):
    assert load(shared / "diffusers").fingerprint != load(write_diffusers(tmp_path, seed=1)).fingerprint


def test_without_a_planner_no_plan_is_asked_for(model, planned):
    assert supports(planned, Plans)
    assert not supports(model, Plans)
    assert supports(model, Inpaints)
    assert supports(model, EncodesSounds)


def test_songs_are_encoded_in_windows_as_in_one_piece(shared, model):
    """The mean of the posterior, of a clip and of a sound that is read slice by slice."""
    clip = noise(20.0, 4000, 2)
    with torch.no_grad():
        whole = parts()["vae"].encode(torch.from_numpy(clip.samples)[None]).latent_dist.mean[0].T
    assert distance(model.encode(clip), whole) <= 1e-4
    assert distance(model.encode_sound(sound_of(clip)), whole) <= 1e-4


def test_a_pass_can_be_traced_without_values(model):
    """Shapes of the velocity and of its gradient, nothing computed: how memory is estimated."""
    rows = [
        prompt_request(replace(PROMPT, text=text), "a", 25, model.embed).row for text in ("a", "a longer one")
    ]
    condition = model.condition(rows, 25)
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(tensor) for name, tensor in condition.items()}
        network = type(model.network).from_config(model.network.config)
        frames = mode.from_tensor(torch.tensor([25, 25]))
        null = replace(model, null=mode.from_tensor(model.null), network=network)
        v = null.velocity(network, torch.randn(2, 25, CHANNELS), torch.rand(2), fake, frames)
        v.square().mean().backward()
    assert v.shape == (2, 25, CHANNELS)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())


def test_a_plan_of_part_of_the_song_leaves_silence_behind_it(planned):
    codes = torch.tensor([1, 2, 3])
    hints = planned.embed_plan(Plan(planner=planned.planner, tensors={"codes": codes}))
    assert hints["plan.hints"].shape == (15, CHANNELS)
    row = prompt_request(PROMPT, "a", 25, planned.embed).row
    condition = planned.condition([replace(row, embedding=row.embedding | hints)], 25)
    assert torch.equal(condition["source"][0, :15], hints["plan.hints"])
    assert torch.equal(condition["source"][0, 15:], planned.silence[15:25])
