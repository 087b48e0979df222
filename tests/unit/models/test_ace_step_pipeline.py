"""Songs of the sampler against diffusers' AceStepPipeline, run on each song alone with the same noise."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from diffusers import AceStepTransformer1DModel as Published
from support.ace_step import CODES, parts, write_diffusers
from support.adapters import write_export
from support.model_contract import distance, draw, noise
from transformers import PreTrainedTokenizerFast

from diffdpo.models import MODELS
from diffdpo.models.ace_step.text import INSTRUCTIONS
from diffdpo.randomness import draw_noise
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import InpaintContext, prompt_request
from diffdpo.sampling.sampler import follow, generate, start
from diffdpo.types import Clip, Plan, Prompt

pytestmark = pytest.mark.slow

STEPS = 6
APG = SamplingConfig(
    steps=STEPS, solver=Choice("euler"), shift=3.0, guidance_scale=7.0, guidance=Choice("channel_apg")
)
PROMPTS = (
    Prompt(id="a", text="slow piano, rain", lyrics="[verse]\nla la la", language="en", duration_s=1.6),
    Prompt(id="b", text="techno", lyrics="no", language="de", duration_s=0.92),
    Prompt(
        id="c", text="jazz", lyrics="oh\nyeah", language="fr", duration_s=1.32,
        controls=(("bpm", 90), ("key", "C major"), ("metre", "4/4")),
    ),
)  # fmt: skip
LONG = Prompt(id="long", text="a" * 40, lyrics="[verse]\n" + "na " * 30, language="en", duration_s=2.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_diffusers(tmp_path_factory.mktemp("ace-step"))


@pytest.fixture(scope="module")
def model(folder):
    return MODELS["ace_step"](checkpoint=str(folder)).load()


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    folder = write_diffusers(tmp_path_factory.mktemp("turbo"), is_turbo=True, model_version="turbo")
    return MODELS["ace_step"](checkpoint=str(folder), variant="turbo").load()


def pipeline(**config):
    content = parts()
    sizes = {key: value for key, value in content["transformer"].config.items() if not key.startswith("_")}
    net = Published.from_config({**sizes, **config}).eval()
    net.load_state_dict(content["transformer"].state_dict())
    pipe = AceStepPipeline(
        vae=content["vae"],
        text_encoder=content["text_encoder"],
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=content["tokenizer"], pad_token="<|endoftext|>"),
        transformer=net,
        condition_encoder=content["condition_encoder"],
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=content["audio_tokenizer"],
        audio_token_detokenizer=content["audio_token_detokenizer"],
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def published(pipe, prompt, frames, seed, **more):
    """The pipeline's latents after every step."""
    path = []
    controls = dict(prompt.controls)
    arguments = {
        "prompt": prompt.text,
        "lyrics": prompt.lyrics or "",
        "vocal_language": prompt.language,
        "audio_duration": prompt.duration_s,
        "bpm": controls.get("bpm"),
        "keyscale": controls.get("key"),
        "timesignature": controls.get("metre", "").split("/")[0],
        "num_inference_steps": STEPS,
        "guidance_scale": 7.0,
        "latents": draw_noise(seed, [prompt.id], frames, 8),
        "callback": lambda step, t, x: path.append(x[0].clone()),
    }
    pipe(**(arguments | more), output_type="latent")
    return path


def ours(model, requests, cfg, seed):
    """The latents of all songs after every step."""
    path = []
    with torch.no_grad():
        follow(
            start(model, requests, cfg, seed=seed), cfg,
            hook=lambda step, x, t, state: (path.append(x.clone()), (x, state))[1],
        )  # fmt: skip
    return path


def request(model, prompt, **more):
    frames = model.spec.frames(prompt.duration_s)
    return replace(prompt_request(prompt, prompt.id, frames, model.embed), **more)


def check(path, reference, row, frames):
    assert len(path) == len(reference)
    for x, expected in zip(path, reference, strict=True):
        assert distance(x[row, :frames], expected) <= 1e-5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.id)
def test_a_song_in_a_padded_batch_takes_the_pipelines_path(model, pipe, prompt, seed):
    frames = model.spec.frames(prompt.duration_s)
    reference = published(pipe, prompt, frames, seed)
    alone = ours(model, [request(model, prompt)], APG, seed)
    batch = ours(model, [request(model, LONG), request(model, prompt)], APG, seed)
    check(alone, reference, 0, frames)
    check(batch, reference, 1, frames)


@pytest.mark.parametrize(
    ("cfg", "more"),
    [
        (replace(APG, guidance_scale=1.0), {"guidance_scale": 1.0}),
        (replace(APG, shift=1.0, steps=9), {"shift": 1.0, "num_inference_steps": 9}),
        (replace(APG, guidance_interval=[0.4, 0.9]), {"cfg_interval_start": 0.1, "cfg_interval_end": 0.6}),
    ],
    ids=["unguided", "shift-1", "interval"],
)
def test_schedules_and_intervals_are_the_pipelines(model, pipe, cfg, more):
    prompt = PROMPTS[0]
    frames = model.spec.frames(prompt.duration_s)
    path = ours(model, [request(model, LONG), request(model, prompt)], cfg, 0)
    check(path, published(pipe, prompt, frames, 0, **more), 1, frames)


@pytest.mark.parametrize("peft", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_the_pipeline_loads_an_exported_adapter_and_takes_our_path(model, folder, tmp_path, peft):
    """`pipe.load_lora_weights` on what `export-adapter` wrote; ours has it merged."""
    export = write_export(MODELS["ace_step"](checkpoint=str(folder)).load(), tmp_path, "diffusers", **peft)
    adapted, pipe, prompt = (
        MODELS["ace_step"](checkpoint=str(folder), adapter=str(export)).load(), pipeline(), PROMPTS[0]
    )  # fmt: skip
    pipe.load_lora_weights(str(export))
    reference = published(pipe, prompt, 40, 0)
    path = ours(adapted, [request(adapted, LONG), request(adapted, prompt)], APG, 0)
    check(path, reference, 1, 40)
    plain = ours(model, [request(model, LONG), request(model, prompt)], APG, 0)
    assert distance(plain[-1][1, :40], reference[-1]) > 1e-2


def test_audio_codes_replace_the_source(model, pipe):
    prompt, codes = PROMPTS[0], torch.arange(8) * 3 % CODES
    text = "".join(f"<|audio_code_{code}|>" for code in codes.tolist())
    reference = published(pipe, prompt, 40, 0, audio_codes=text)
    plan = model.embed_plan(Plan(planner=model.planner, tensors={"codes": codes}))
    plain = request(model, prompt)
    planned = replace(plain, row=replace(plain.row, embedding=plain.row.embedding | plan))
    path = ours(model, [request(model, LONG), planned, plain], APG, 0)
    check(path, reference, 1, 40)
    check(path, published(pipe, prompt, 40, 0), 2, 40)


@pytest.mark.parametrize("seconds", [1.6, 1.32])
def test_a_cover_of_a_recording_is_the_pipelines(model, pipe, monkeypatch, seconds):
    """Whole codes, and a last one filled up with silence."""
    prompt, sound = replace(PROMPTS[0], duration_s=seconds), noise(seconds, 4000, 2)
    frames = model.spec.frames(seconds)
    mean_of_posterior(monkeypatch)
    reference = published(
        pipe, prompt, frames, 0, src_audio=torch.from_numpy(sound.samples), task_type="cover"
    )
    plan = model.cover_plan(model.encode(sound))
    assert len(plan.tensors["codes"]) == -(-frames // 5)
    plain = request(model, prompt)
    hints = model.embed_plan(plan)
    cover = replace(plain, row=replace(plain.row, embedding=plain.row.embedding | hints))
    path = ours(model, [request(model, LONG), cover, plain], APG, 0)
    check(path, reference, 1, frames)
    assert distance(path[-1][1, :frames], path[-1][2, :frames]) > 1e-3


def test_a_repaint_is_the_pipelines(model, pipe, monkeypatch):
    """Equal after every step; in the end the pipeline has rendered what is kept anew, and ours has put it back."""
    prompt, sound = PROMPTS[0], noise(1.6, 4000, 2)
    keep = torch.ones(40, dtype=torch.bool)
    keep[10:25] = False
    latents = model.encode(sound)
    mean_of_posterior(monkeypatch)
    reference = published(
        pipe, prompt, 40, 0, src_audio=torch.from_numpy(sound.samples), task_type="repaint",
        repainting_start=0.4, repainting_end=1.0,
    )  # fmt: skip
    edit = request(model, prompt, context=InpaintContext(latents, keep))
    check(ours(model, [request(model, LONG), edit], APG, 0), reference, 1, 40)
    with torch.no_grad():
        song = generate(model, [edit], APG, seed=0)[0].latents
    assert torch.equal(song[keep], latents[keep])
    assert distance(song[~keep], reference[-1][~keep]) <= 1e-5


def test_a_timbre_reference_is_the_pipelines(model, pipe, monkeypatch):
    """Three excerpts of ten seconds; a short recording is repeated. The posterior's mean in both."""
    mean_of_posterior(monkeypatch)
    for seconds in (4.0, 41.0):
        sound = noise(seconds, 4000, 2)
        prompt = replace(PROMPTS[1], id=f"timbre-{seconds}", style_audio=sound)
        reference = published(pipe, prompt, 23, 0, reference_audio=torch.from_numpy(sound.samples))
        path = ours(model, [request(model, prompt)], APG, 0)
        plain = ours(model, [request(model, replace(prompt, style_audio=None))], APG, 0)
        for x, expected in zip(path, reference, strict=True):
            assert distance(x[0], expected) <= 2e-5  # the autoencoder runs in windows here
        assert distance(path[-1], plain[-1]) > 1e-3


def mean_of_posterior(monkeypatch):
    from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution

    monkeypatch.setattr(OobleckDiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)


def test_the_turbo_has_its_eight_times_and_no_guidance(turbo):
    cfg = replace(APG, steps=8, guidance_scale=1.0)
    prompt = PROMPTS[0]
    reference = published(
        pipeline(is_turbo=True, model_version="turbo"), prompt, 40, 0, num_inference_steps=8
    )
    check(ours(turbo, [request(turbo, LONG), request(turbo, prompt)], cfg, 0), reference, 1, 40)
    assert turbo.spec.times == pytest.approx((1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0), abs=1e-4)
    assert turbo.unconditional == ()


def test_the_renoising_step_noises_the_predicted_song_anew(turbo):
    """x' = (1 - t') (x - t v) + t' noise: after the last step the predicted song itself."""
    cfg = replace(APG, steps=8, guidance_scale=1.0, solver=Choice("ping_pong"))
    song = request(turbo, PROMPTS[0])
    path = start(turbo, [song], cfg, seed=0)
    x, state, times = path.x, path.state, path.times[:, 0]
    with torch.no_grad():
        for step in range(8):
            v, _ = path.velocity(x, times[step : step + 1], state)
            fresh = path.noise(step)("step", state)
            x = (1 - times[step + 1]).float() * (x - times[step].float() * v) + times[
                step + 1
            ].float() * fresh
        songs = generate(turbo, [song], cfg, seed=0)
    assert distance(songs[0].latents, x[0]) <= 1e-5


def test_the_null_is_one_token_whatever_the_length(model, pipe):
    x, t = draw(1, 40, 8), torch.tensor([0.5])
    condition = model.condition([request(model, PROMPTS[0]).row], 40)
    dropped = model.without(condition, "prompt", torch.tensor([True]))
    context = model.prepare(None, dropped, torch.tensor([40]))["context"]
    with torch.no_grad():
        v = model.velocity(model.network, x, t, dropped, torch.tensor([40]))
        for count in (1, 7, 60):
            null = model.null.expand(1, count, -1)
            expected = pipe.transformer(x, t, t, null, context, return_dict=False)[0]
            assert distance(v, expected) <= 1e-5
        zeros = pipe.transformer(x, t, t, torch.zeros(1, 7, 32), context, return_dict=False)[0]
    assert distance(v, zeros) > 0.05


def test_the_texts_are_the_pipelines(model, pipe):
    from diffusers.pipelines.ace_step.pipeline_ace_step import TASK_INSTRUCTIONS

    from diffdpo.models.ace_step.text import prompt_texts

    for prompt in PROMPTS:
        controls = dict(prompt.controls)
        texts = prompt_texts(prompt)
        for task, text in zip(INSTRUCTIONS, texts.tasks, strict=True):
            expected = pipe._format_prompt(
                prompt.text, prompt.lyrics, prompt.language, prompt.duration_s, TASK_INSTRUCTIONS[task],
                controls.get("bpm"), controls.get("key"), re.sub("/.*", "", controls.get("metre", "")),
            )  # fmt: skip
            assert (text, texts.lyrics) == expected


def test_sound_decoded_in_windows_is_the_autoencoders(model, pipe):
    latents = draw(300, 8)
    with torch.no_grad():
        whole = pipe.vae.decode(latents.T[None]).sample[0].numpy()
    clip = model.decode(latents)
    assert isinstance(clip, Clip)
    assert np.abs(clip.samples - whole).max() <= 1e-4 * np.abs(whole).max()
