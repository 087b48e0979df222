"""Small random parts of Stable Audio 3 as diffusers builds them: network, text encoder, durations, autoencoder."""

import json

import torch
from diffusers import (
    AutoencoderSAME,
    FlowMatchEulerDiscreteScheduler,
    StableAudio3DiTModel,
    StableAudio3Pipeline,
)
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5GemmaConfig,
    T5GemmaEncoderModel,
    T5GemmaModuleConfig,
)

CHANNELS, TEXT = 8, 16
SIZES = {
    "io_channels": CHANNELS, "embed_dim": 32, "depth": 3, "num_heads": 4, "cond_token_dim": TEXT,
    "global_cond_dim": TEXT, "local_add_cond_dim": CHANNELS + 1, "timestep_features_dim": 16, "ff_mult": 2.0,
    "num_memory_tokens": 3,
}  # fmt: skip
SAME_SIZES = {
    "patch_size": 8, "encoder_channels": 8, "encoder_c_mults": [4], "encoder_strides": [4],
    "encoder_transformer_depths": [2], "latent_dim": CHANNELS, "dim_heads": 8, "sampling_rate": 800,
}  # fmt: skip
"""800 Hz at 32 samples a frame: 25 frames a second."""


def draw_zeros(module):
    """Random values for weights that are zero in a new module, so that tests see what passes through them."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return module.eval().requires_grad_(False)


def dit(differential=True, seed=0):
    """Diffusers' network."""
    torch.manual_seed(seed)
    return draw_zeros(StableAudio3DiTModel(**SIZES, use_differential_attention=differential))


def same(seed=1, **sizes):
    """Diffusers' autoencoder."""
    torch.manual_seed(seed)
    module = draw_zeros(AutoencoderSAME(**SAME_SIZES | sizes))
    with torch.no_grad():
        module.bottleneck.running_std.fill_(0.7)
    return module


def duration_embedder(seed=2):
    torch.manual_seed(seed)
    return draw_zeros(StableAudio3DurationEmbedder(output_dim=TEXT, fourier_dim=8))


def tokenizer():
    """Bytes as tokens, behind a mark of the beginning."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2} | {byte: 3 + i for i, byte in enumerate(alphabet)}
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", model_max_length=256
    )


def text_encoder(seed=3):
    torch.manual_seed(seed)
    module = T5GemmaModuleConfig(
        vocab_size=260, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=16, pad_token_id=0,
        eos_token_id=1, bos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    config = T5GemmaConfig(
        encoder=module, decoder=module, is_encoder_decoder=False, vocab_size=260, attn_implementation="eager"
    )
    return T5GemmaEncoderModel(config).eval().requires_grad_(False)


def write_diffusers(folder, *, differential=True, distilled=False):
    """A folder as a pipeline of diffusers has it."""
    dit(differential).save_pretrained(folder / "transformer")
    same().save_pretrained(folder / "vae")
    duration_embedder().save_pretrained(folder / "duration_embedder")
    text_encoder().save_pretrained(folder / "text_encoder")
    tokenizer().save_pretrained(folder / "tokenizer")
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=distilled)
    scheduler.save_pretrained(folder / "scheduler")


def pipeline(folder, kind=StableAudio3Pipeline):
    """Diffusers' pipeline of the parts in a folder that `write_diffusers` wrote."""
    whole = kind(
        vae=AutoencoderSAME.from_pretrained(folder / "vae"),
        text_encoder=T5GemmaEncoderModel.from_pretrained(
            folder / "text_encoder", attn_implementation="eager"
        ),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        duration_embedder=StableAudio3DurationEmbedder.from_pretrained(folder / "duration_embedder"),
        transformer=StableAudio3DiTModel.from_pretrained(folder / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    )
    whole.set_progress_bar_config(disable=True)
    return whole


INVERSE = (
    ("ff.proj_in.", "ff.ff.0.proj."),
    ("ff.proj_out.", "ff.ff.2."),
    ("norm_attn.", "pre_norm."),
    ("norm_ff.", "ff_norm."),
)


def published_qkv(name, tensor):
    """Diffusers' q, q2, k, k2, v as the published q, k, v, q2, k2."""
    if not name.endswith("attn.to_qkv.weight") or len(tensor) != 5 * tensor.shape[1]:
        return tensor
    q, q2, k, k2, v = tensor.chunk(5)
    return torch.cat([q, k, v, q2, k2])


def published_state(network, codec=None, durations=None):
    """The tensors of diffusers' modules under the names and in the order of the published files."""
    state = {}
    outer = ("to_timestep", "to_cond", "to_global", "preprocess", "postprocess")
    for name, tensor in network.state_dict().items():
        if name == "prompt_padding_embedding":
            state["conditioner.conditioners.prompt.padding_embedding"] = tensor
            continue
        tensor = published_qkv(name, tensor)
        for new, old in INVERSE:
            name = name.replace(new, old)
        name = name.replace("transformer_blocks.", "layers.")
        name = name.replace("proj_in.", "project_in.").replace("proj_out.", "project_out.")
        state["model.model." + ("" if name.startswith(outer) else "transformer.") + name] = tensor
    if durations is not None:
        prefix = "conditioner.conditioners.seconds_total.embedder.embedding.1."
        state |= {prefix + name: getattr(durations.linear, name) for name in ("weight", "bias")}
    levels = len(codec.config.encoder_strides) if codec else 0
    for name, tensor in codec.state_dict().items() if codec else ():
        tensor = published_qkv(name, tensor)
        for new, old in INVERSE:
            name = name.replace(new, old)
        name = name.replace(".attn.", ".self_attn.").replace("bottleneck.scale", "bottleneck.scaling_factor")
        name = name.replace("encoder.proj.", f"encoder.layers.{levels + 1}.").replace(
            "encoder.blocks.", "encoder.layers."
        )
        name = name.replace("decoder.proj.", "decoder.layers.1.")
        if name.startswith("decoder.blocks."):
            number, rest = name.removeprefix("decoder.blocks.").split(".", 1)
            name = f"decoder.layers.{int(number) + 3}.{rest}"
        state[f"pretransform.model.{name}"] = tensor
    if codec:
        state["pretransform.model.bottleneck.noise_scaling_factor"] = torch.ones(1, 0, 1)
        state["pretransform.model.encoder.layers.0.transformers.0.rope.inv_freq"] = torch.ones(2)
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


AUDIBLE = {"patch_size": 40, "sampling_rate": 4000}
"""Sizes of an autoencoder whose sound scorers can hear, at the same 25 frames a second."""


CHUNKS = {"sliding_window": None, "chunk_size": 8, "chunk_midpoint_shift": True}
"""Two segments of four, as the two of sixteen of SAME-S."""


def model_config(distilled=False, window=(1, 1), rate=800):
    """A model_config.json of the small parts."""
    sides = {
        "channels": SAME_SIZES["encoder_channels"], "c_mults": SAME_SIZES["encoder_c_mults"],
        "strides": SAME_SIZES["encoder_strides"], "latent_dim": CHANNELS, "dim_heads": 8, "differential": True,
        "transformer_depths": SAME_SIZES["encoder_transformer_depths"],
    }  # fmt: skip
    sides |= {"sliding_window": list(window)} if window else CHUNKS
    return {
        "sample_rate": rate,
        "sample_size": rate * 384,
        "model": {
            "diffusion": {"diffusion_objective": "rf_denoiser" if distilled else "rectified_flow"},
            "conditioning": {
                "configs": [
                    {"id": "prompt", "type": "t5gemma", "config": {"max_length": 256}},
                    {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 384}},
                ]
            },
            "pretransform": {
                "config": {
                    "io_channels": 2, "downsampling_ratio": rate // 25,
                    "encoder": {"config": sides},
                    "decoder": {"config": sides | {"conv_mapping": window is None}},
                }
            },
        },
    }  # fmt: skip


def write_published(folder, *, differential=True, audible=False, **config):
    """The same parts as `write_diffusers`, in the published layout."""
    folder.mkdir(parents=True, exist_ok=True)
    codec = same(**(AUDIBLE if audible else {}))
    save_file(published_state(dit(differential), codec, duration_embedder()), folder / "model.safetensors")
    config |= {"rate": codec.config.sampling_rate}
    (folder / "model_config.json").write_text(json.dumps(model_config(**config)))
    text_encoder().save_pretrained(folder / "t5gemma-b-b-ul2")
    tokenizer().save_pretrained(folder / "t5gemma-b-b-ul2")
