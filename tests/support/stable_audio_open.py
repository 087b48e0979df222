"""Small random parts of Stable Audio Open as diffusers builds them, in a pipeline's folder."""

import torch
from diffusers import AutoencoderOobleck, EDMEulerScheduler, StableAudioDiTModel, StableAudioPipeline
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from support.stable_audio3 import draw_zeros, tokenizer

CHANNELS, TEXT, FRAMES = 8, 16, 50
TOKENS = 32


def write_open(folder, *, audible=False):
    """All parts; 400 Hz at 16 samples a frame, or 4 kHz at 160, 2 s at most."""
    torch.manual_seed(0)
    draw_zeros(
        StableAudioDiTModel(
            sample_size=FRAMES, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=3, attention_head_dim=8,
            num_attention_heads=4, num_key_value_attention_heads=2, cross_attention_dim=16, time_proj_dim=16,
            global_states_input_dim=2 * TEXT, cross_attention_input_dim=TEXT,
        )
    ).save_pretrained(folder / "transformer")  # fmt: skip
    AutoencoderOobleck(
        encoder_hidden_size=2 * CHANNELS, downsampling_ratios=[10, 16] if audible else [4, 4],
        channel_multiples=[1, 2], decoder_channels=8,
        decoder_input_channels=CHANNELS, sampling_rate=4000 if audible else 400,
    ).save_pretrained(folder / "vae")  # fmt: skip
    T5EncoderModel(
        T5Config(vocab_size=260, d_model=12, d_kv=6, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0)
    ).save_pretrained(folder / "text_encoder")
    words = tokenizer()
    words.model_max_length = TOKENS
    words.save_pretrained(folder / "tokenizer")
    projection = StableAudioProjectionModel(
        text_encoder_dim=12, conditioning_dim=TEXT, min_value=0, max_value=512
    )
    draw_zeros(projection).save_pretrained(folder / "projection_model")


class VpEuler(EDMEulerScheduler):
    """Euler's steps with the time embedding of a v-prediction network, arctan(sigma) 2 / pi."""

    def precondition_noise(self, sigma):
        sigma = torch.as_tensor(sigma)
        return torch.atan(sigma) / torch.pi * 2


def open_pipeline(folder):
    """Diffusers' pipeline of the parts in a folder, with deterministic steps."""
    whole = StableAudioPipeline(
        vae=AutoencoderOobleck.from_pretrained(folder / "vae"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder"),
        projection_model=StableAudioProjectionModel.from_pretrained(folder / "projection_model"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=StableAudioDiTModel.from_pretrained(folder / "transformer"),
        scheduler=VpEuler(sigma_min=0.3, sigma_max=500.0, sigma_data=1.0, prediction_type="v_prediction"),
    )
    whole.set_progress_bar_config(disable=True)
    return whole
