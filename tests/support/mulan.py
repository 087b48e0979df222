"""A MuQ-MuLan small enough for any test, in the layout of the published one."""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import XLMRobertaConfig, XLMRobertaModel

from diffdpo.encoders import muq

WORDS = ("<s>", "<pad>", "</s>", "<unk>", "slow", "jazz", "metal", "piano")
TINY = muq.MuQConfig(dim=32, depth=2, heads=4, hidden=48, kernel_size=7, conv_dim=4)
DIM, HEADS, HEAD_DIM, HIDDEN, STYLES = 16, 2, 6, 10, 12


def parameters(styles=STYLES):
    """Random numbers under the published names; embeddings of so many numbers."""
    torch.manual_seed(0)
    roberta = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=1,
            intermediate_size=32, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1,
        )
    )  # fmt: skip
    tensors = {
        f"mulan.audio.model.model.{name}": tensor for name, tensor in muq.MuQ(TINY).state_dict().items()
    }
    tensors |= {f"mulan.text.model.{name}": 10 * tensor for name, tensor in roberta.state_dict().items()}
    shapes = {
        "audio.aggregator.weight": (1, 25, 1),
        "contrast.temperatures": (1, 1, 1),
        "audio.model.model.rvq.codebook": (3,),
    }
    for side, inputs in (("audio", 32), ("text", 64)):
        shapes |= {f"{side}.proj.weight": (DIM, inputs), f"{side}.proj.bias": (DIM,)}
        shapes |= {f"{side}_to_latents.weight": (styles, DIM), f"{side}_to_latents.bias": (styles,)}
        for layer in (0, 1):
            name, inner = f"{side}.transformer.layers.{layer}", HEADS * HEAD_DIM
            shapes |= {
                f"{name}.0.norm.learned_gamma": (DIM,),
                f"{name}.0.to_q.weight": (inner, DIM),
                f"{name}.0.to_kv.weight": (2 * inner, DIM),
                f"{name}.0.q_scale": (HEAD_DIM,),
                f"{name}.0.k_scale": (HEAD_DIM,),
                f"{name}.0.to_out.0.weight": (DIM, inner),
                f"{name}.1.0.learned_gamma": (DIM,),
                f"{name}.1.1.weight": (2 * HIDDEN, DIM),
                f"{name}.1.4.weight": (DIM, HIDDEN),
            }
    return tensors | {f"mulan.{name}": 0.5 * torch.randn(shape) for name, shape in shapes.items()}


def write_mulan(root, styles=STYLES):
    """A random MuQ-MuLan in the published layout, and a tokenizer that knows its few words."""
    root.mkdir(parents=True, exist_ok=True)
    torch.save(parameters(styles), root / "pytorch_model.bin")
    config = {"audio_model": {"name": "OpenMuQ/MuQ-large"}, "text_model": {"name": "xlm-roberta-base"}}
    (root / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.enable_padding(length=20, pad_id=1)  # as a file may ask for
    tokenizer.save(str(root / "tokenizer.json"))
    return root
