"""A small random ACE-Step 1.5: every part in both published layouts, with tokenizers of its own."""

import json
import math

import torch
from safetensors.torch import save_file

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 10000.0,
    "sliding_window": 5,
}
CHANNELS, RATE, LEVELS = 8, 4000, (5, 5)
CODES = math.prod(LEVELS)
TEMPLATE = (
    "# Instruction\nFill the audio semantic mask based on the given conditions:\nRepaint the mask area\n"
    "Generate audio semantic tokens\n\n# Caption\n\n# Metas\n- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n"
    "- duration: 30 seconds\n# Languages\nen\n\n# Lyric\n"
)


def network(seed=0, **config):
    from diffdpo.models.ace_step.network import AceStepTransformer1DModel

    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 4, "in_channels": 3 * CHANNELS, "audio_acoustic_hidden_dim": CHANNELS}
    return AceStepTransformer1DModel(**{**SIZES, **sizes, **config}).eval()


def tokenizer(tokens=()):
    """Bytes, and the words of the template whole, so that every text has tokens; special tokens are one each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    symbols, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    for word, _ in split.pre_tokenize_str(TEMPLATE):
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
    merges = list(dict.fromkeys(merges))
    words = dict.fromkeys([*symbols, *(start + letter for start, letter in merges)])
    bpe = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    bpe.pre_tokenizer, bpe.decoder = split, decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *tokens]
    bpe.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return bpe


def qwen_config(tokens, **more):
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=tokens, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, **more,
    )  # fmt: skip


def parts(seed=0):
    """The parts as diffusers has them."""
    from diffusers import AutoencoderOobleck
    from diffusers.pipelines.ace_step.modeling_ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Model

    torch.manual_seed(100 + seed)
    condition = AceStepConditionEncoder(
        **SIZES, text_hidden_dim=32, timbre_hidden_dim=CHANNELS, num_lyric_encoder_hidden_layers=2,
        num_timbre_encoder_hidden_layers=2,
    )  # fmt: skip
    condition.silence_latent.copy_(torch.randn(condition.silence_latent.shape))
    acoustic = {
        "audio_acoustic_hidden_dim": CHANNELS,
        "pool_window_size": 5,
        "num_attention_pooler_hidden_layers": 2,
    }
    bpe = tokenizer()
    content = {
        "condition_encoder": condition,
        "audio_tokenizer": AceStepAudioTokenizer(**SIZES, **acoustic, fsq_dim=32, fsq_input_levels=list(LEVELS)),
        "audio_token_detokenizer": AceStepAudioTokenDetokenizer(**SIZES, **acoustic),
        "vae": AutoencoderOobleck(
            encoder_hidden_size=2 * CHANNELS, downsampling_ratios=[4, 4, 10], channel_multiples=[1, 2, 4],
            decoder_channels=4, decoder_input_channels=CHANNELS, sampling_rate=RATE,
        ),
        "text_encoder": Qwen3Model(qwen_config(bpe.get_vocab_size())),
    }  # fmt: skip
    torch.nn.init.normal_(content["audio_token_detokenizer"].special_tokens)
    last = content["vae"].decoder.conv2.weight_v.data
    last -= last.mean(-1, keepdim=True)  # no constant in the sound, which gates refuse
    for part in content.values():
        part.eval().requires_grad_(False)
    return {"transformer": network(seed), "tokenizer": bpe, **content}


def write_diffusers(folder, seed=0, **config):
    """diffusers' layout."""
    for name, part in parts(seed).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        if name == "tokenizer":
            part.save(str(folder / name / "tokenizer.json"))
        elif name == "transformer":
            network(seed, **config).save_pretrained(folder / name)
        else:
            part.save_pretrained(folder / name)
    return folder


def write_original(folder, seed=0, name="acestep-v15-base", sizes=None, **config):
    """The original layout, with the text encoder and the VAE beside the checkpoint; the checkpoint's folder.

    `sizes` are those of another network; `config` are further keys of the configuration.
    """
    from diffdpo.models.ace_step.layouts import NULL, SILENCE, original_names

    content = parts(seed) | {"transformer": network(seed, **(sizes or {}))}
    checkpoint, text = folder / name, folder / "Qwen3-Embedding-0.6B"
    for path in (checkpoint, text):
        path.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for part in ("transformer", "condition_encoder", "audio_tokenizer", "audio_token_detokenizer"):
        state = dict(content[part].state_dict())
        for key in (NULL, SILENCE):
            if key in state:
                tensors[key] = state.pop(key)
        tensors |= original_names(state, part)
    torch.save(tensors.pop(SILENCE).transpose(1, 2).contiguous(), checkpoint / "silence_latent.pt")
    save_file({key: value.contiguous() for key, value in tensors.items()}, checkpoint / "model.safetensors")
    plain = dict(content["transformer"].config)
    keys = ("attention_bias", "attention_dropout", "rms_norm_eps", "rope_theta", "sliding_window")
    written = {key: plain[key] for key in keys} | {
        "layer_types": content["transformer"].layer_types,
        "pool_window_size": 5,
        "fsq_input_levels": list(LEVELS),
        "fsq_input_num_quantizers": 1,
        "model_version": "base",
        "is_turbo": False,
    }
    (checkpoint / "config.json").write_text(json.dumps(written | config))
    content["text_encoder"].save_pretrained(text)
    content["tokenizer"].save(str(text / "tokenizer.json"))
    content["vae"].save_pretrained(folder / "vae")
    return checkpoint


def write_planner(folder, seed=0):
    """A language model that writes audio codes, its vocabulary holds them; of odd seeds with tied weights."""
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(200 + seed)
    bpe = tokenizer([f"<|audio_code_{code}|>" for code in range(CODES)])
    model = Qwen3ForCausalLM(
        qwen_config(bpe.get_vocab_size(), tie_word_embeddings=bool(seed % 2), initializer_range=0.3)
    )
    model.save_pretrained(folder)
    bpe.save(str(folder / "tokenizer.json"))
    return folder
