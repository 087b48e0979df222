"""A small random ACE-Step 1.5: every part in the published layouts, a tokenizer included."""

import torch

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 10000.0,
    "sliding_window": 5,
}
CHANNELS = 8


def network(seed=0, **config):
    from diffdpo.models.ace_step.network import AceStepTransformer1DModel

    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 4, "in_channels": 3 * CHANNELS, "audio_acoustic_hidden_dim": CHANNELS}
    return AceStepTransformer1DModel(**SIZES, **sizes, **config).eval()
