"""What `export-pairs` writes is read by TRL's own DPO trainer, which trains ACE-Step's planner on it."""

import re
from pathlib import Path

import pytest
import torch
from support.ace_step import CODES, write_planner
from support.launch import verb
from support.plans import codes_plan, write_planned_pairs

from diffdpo.models.ace_step.planner import load_planner

pytestmark = pytest.mark.slow

HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "planners.md"
PROMPTS = [
    {
        "id": "a",
        "text": "slow rock",
        "lyrics": "[verse]\nla la",
        "language": "en",
        "bpm": 90,
        "duration_s": 2.0,
    },
    {"id": "b", "text": "metal", "lyrics": "", "key": "E minor", "metre": "4/4", "duration_s": 1.5},
]
SYSTEM = (
    "<|im_start|>system\n# Instruction\nGenerate audio semantic tokens based on the given conditions:\n\n"
    "<|im_end|>\n"
)
TEXTS = [
    f"{SYSTEM}<|im_start|>user\n# Caption\nslow rock\n\n# Lyric\n[verse]\nla la\n<|im_end|>\n"
    "<|im_start|>assistant\n<think>\nbpm: 90\nduration: 2\nlanguage: en\n</think>\n\n",
    f"{SYSTEM}<|im_start|>user\n# Caption\nmetal\n\n# Lyric\n[Instrumental]\n<|im_end|>\n"
    "<|im_start|>assistant\n<think>\nduration: 1\nkeyscale: E minor\ntimesignature: 4\n</think>\n\n",
]
PLANS = {"a.000": range(10), "a.001": [7, 7, *range(8)], "b.000": [24] * 8, "b.001": range(8)}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("trl")


@pytest.fixture(scope="module")
def trainer(work):
    """TRL's trainer after three steps on the exported pairs, by the function of the how-to."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    planner = write_planner(work / "planner")
    PreTrainedTokenizerFast(
        tokenizer_file=str(planner / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(planner)
    pairs = write_planned_pairs(
        work,
        {"name": "ace_step", "checkpoint": "acestep-v15-base", "planner": str(planner)},
        PROMPTS,
        {name: codes_plan(list(codes)) for name, codes in PLANS.items()},
        [("a.000", "a.001", {"margins": {"harmony.key": 1.5}}), ("b.000", "b.001", {})],
    )
    verb("export-pairs", pairs, "--for", "trl", "--out", work / "pairs.jsonl")
    (text,) = re.findall(r"```python\n(.*?)```", HOWTO.read_text(), re.DOTALL)
    space: dict = {}
    exec(compile(text, HOWTO.name, "exec"), space)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", work / "cache")
        return space["train_planner"](
            str(work / "pairs.jsonl"), str(planner), str(work / "trained"), max_steps=3,
            per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, save_strategy="no",
            report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        )  # fmt: skip


def test_trl_reads_prompt_and_codes_as_the_planner_has_them(trainer, tmp_path):
    planner = load_planner(write_planner(tmp_path), CODES)
    end = planner.tokenizer.token_to_id("<|im_end|>")
    rows = list(trainer.train_dataset)
    for row, text, (winner, loser) in zip(rows, TEXTS, [("a.000", "a.001"), ("b.000", "b.001")], strict=True):
        assert row["prompt_ids"] == planner.tokenizer.encode(text).ids
        assert row["chosen_ids"] == [*planner.code_ids[list(PLANS[winner])].tolist(), end]
        assert row["rejected_ids"] == [*planner.code_ids[list(PLANS[loser])].tolist(), end]
    assert [row["margin"] for row in rows] == [1.5, None]
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 4
    assert batch["completion_mask"].sum().item() == 2 * 11 + 2 * 9


def test_trl_trains_the_planner_and_what_it_saves_is_one(work, trainer):
    first, *_, last = [row for row in trainer.state.log_history if "loss" in row]
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-4)
    assert last["rewards/margins"] > 0.1
    planner = load_planner(work / "trained", CODES)
    state = trainer.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in planner.model.state_dict().items())
    before = load_planner(work / "planner", CODES).model.state_dict()
    assert not all(torch.equal(before[name], tensor) for name, tensor in state.items())
