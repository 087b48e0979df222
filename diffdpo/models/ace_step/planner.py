"""The planner of ACE-Step 1.5: a Qwen3 language model that writes a song's audio codes, five a second.

The prompt is the published one: an instruction, caption and lyrics in Qwen's chat format, and the metas as the
planner's thoughts. Only codes may follow, as many as the song is long.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from diffdpo.errors import CheckpointError, DataError
from diffdpo.models.ace_step.encoders import load_tokenizer, qwen_config
from diffdpo.models.ace_step.layouts import ORIGINAL_WEIGHTS, read_shards
from diffdpo.models.ace_step.text import INSTRUCTIONS, PromptTexts, prompt_texts
from diffdpo.types import Plan, PlanText, Prompt
from diffdpo.weight_files import assign

CODE_TOKEN = "<|audio_code_{}|>"


@dataclass(eq=False, kw_only=True)
class CodePlanner:
    """A language model whose vocabulary holds the audio codes."""

    model: Any
    tokenizer: Tokenizer
    code_ids: Int[Tensor, " code"]
    """The token of each code."""
    temperature: float = 0.85

    @torch.no_grad()
    def codes(self, texts: PromptTexts, count: int, generator: torch.Generator) -> Int[Tensor, " {count}"]:
        """`count` codes for a prompt, each drawn from `generator`; of probabilities among the codes alone."""
        device = next(self.model.parameters()).device
        ids = torch.tensor([self.tokenizer.encode(planner_prompt(texts)).ids], device=device)
        codes: list[int] = []
        cache = None
        for _ in range(count):
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            logits = output.logits[0, -1, self.code_ids.to(device)].float().cpu()
            probabilities = torch.softmax(logits / self.temperature, -1)
            code = int(torch.multinomial(probabilities, 1, generator=generator))
            codes.append(code)
            ids = self.code_ids[code].view(1, 1).to(device)
        return torch.tensor(codes, dtype=torch.int32)


def planner_prompt(texts: PromptTexts) -> str:
    """The prompt of the planner up to the first code."""
    metas = "\n".join(f"{name}: {value}" for name, value in texts.metas)
    turns = (
        ("system", f"# Instruction\n{INSTRUCTIONS['cover']}\n\n"),
        ("user", f"# Caption\n{texts.caption}\n\n# Lyric\n{texts.words}\n"),
    )
    chat = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return f"{chat}<|im_start|>assistant\n<think>\n{metas}\n</think>\n\n"


def code_text(prompt: Prompt, plan: Plan) -> PlanText:
    """The prompt of a planner and the tokens of its codes. DataError for a plan that is not of audio codes."""
    codes = plan.tensors.get("codes")
    if codes is None or codes.ndim != 1 or not len(codes) or int(codes.min()) < 0:
        raise DataError(f"prompt {prompt.id!r}: its plan holds no audio codes; sample the song again")
    return PlanText(
        prompt=planner_prompt(prompt_texts(prompt)),
        completion="".join(map(CODE_TOKEN.format, codes.tolist())),
    )


def load_planner(folder: Path, codebook: int) -> CodePlanner:
    """A planner of a codebook of so many codes; CheckpointError unless its vocabulary holds them all."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    tokenizer = load_tokenizer(folder)
    ids = [tokenizer.token_to_id(CODE_TOKEN.format(code)) for code in range(codebook)]
    if None in ids:
        raise CheckpointError(
            f"{folder}: its vocabulary lacks {CODE_TOKEN.format(ids.index(None))}; expected a 5 Hz planner of "
            f"{codebook} codes"
        )
    config = qwen_config(folder, Qwen3Config)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    state = read_shards(folder, ORIGINAL_WEIGHTS)
    if not any(name.startswith("model.") for name in state):
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    if config.tie_word_embeddings and "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    assign(model, state, str(folder), torch.float32)
    model.model.rotary_emb = Qwen3RotaryEmbedding(config=config)
    return CodePlanner(model=model.requires_grad_(False), tokenizer=tokenizer, code_ids=torch.tensor(ids))
