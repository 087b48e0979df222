"""Mined pairs as preferences between plans: what is written, what is left out and said, what is refused."""

import json

import pytest
import torch
from support.code_renderer import CodeRenderer
from support.launch import verb
from support.plans import codes_plan, write_planned_pairs

from diffdpo.data.plans import write_plan
from diffdpo.models import MODELS
from diffdpo.recipes.export_pairs import LAYOUTS
from diffdpo.types import Plan

PROMPTS = [
    {"id": "a", "text": "slow rock", "duration_s": 2.0},
    {"id": "b", "text": "Käse\u2028", "duration_s": 1.5},
]
RENDERER = {"name": "code_renderer", "state": "first"}
PLANS = {"a.000": [1, 2], "a.001": [3], "a.002": [1, 2], "a.003": None, "b.000": [0, 0], "b.001": [0]}
AXES = {"harmony.key": 1.0, "rhythm.pulse": 0.5}
PAIRS = [
    ("b.001", "b.000", {"margins": AXES, "axis": "rhythm.pulse", "soft_label": 0.75}),
    ("a.000", "a.001", {"margins": AXES}),
    ("a.000", "a.002", {}),
    ("a.001", "a.003", {}),
]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(MODELS.entries, "code_renderer", CodeRenderer)


def write(folder, plans=PLANS, pairs=PAIRS, model=RENDERER, **planners):
    """`planners` are the states of the planner of single songs, a_000="planner-second"."""
    return write_planned_pairs(
        folder,
        model,
        PROMPTS,
        {
            name: codes_plan(codes, planners.get(name.replace(".", "_"), "planner-first"))
            for name, codes in plans.items()
        },
        pairs,
    )


def export(pairs, *words, code=0, layout="trl"):
    out = pairs.parent / "out" / "pairs.jsonl"
    return verb("export-pairs", pairs, "--for", layout, "--out", out, *words, code=code), out


def lines(out):
    return [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]


def test_a_pair_is_a_line_of_prompt_chosen_and_rejected(tmp_path):
    report, out = export(write(tmp_path))
    assert lines(out) == [
        {
            "id": "../songs|a.000|a.001",
            "prompt": "slow rock, 2 s\n",
            "chosen": "<|audio_code_1|><|audio_code_2|>",
            "rejected": "<|audio_code_3|>",
            "margin": 0.75,
            "soft_label": 1.0,
            "axis": "",
            "planner": "planner-first",
        },
        {
            "id": "../songs|b.001|b.000",
            "prompt": "Käse\u2028, 1.5 s\n",
            "chosen": "<|audio_code_0|>",
            "rejected": "<|audio_code_0|><|audio_code_0|>",
            "margin": 0.5,
            "soft_label": 0.75,
            "axis": "rhythm.pulse",
            "planner": "planner-first",
        },
    ]
    assert report.splitlines() == [
        f"{out}: 2 pairs of planner planner-first",
        "1 left out: a song without a plan",
        "1 left out: winner and loser follow the same plan",
    ]


def test_the_same_command_writes_the_same_file_and_leaves_nothing_beside_it(tmp_path):
    pairs = write(tmp_path)
    first, out = export(pairs)
    content = out.read_bytes()
    assert export(pairs)[0] == first
    assert out.read_bytes() == content
    assert list(out.parent.iterdir()) == [out]


def test_an_error_on_the_way_leaves_the_file_of_before(tmp_path):
    pairs = write(tmp_path)
    _, out = export(pairs)
    content = out.read_bytes()
    write_plan(tmp_path / "songs" / "plans" / "b.000.safetensors", codes_plan([5]))
    assert "not the plan that the song 'b.000' follows" in export(pairs, code=2)[0]
    (tmp_path / "songs" / "plans" / "b.000.safetensors").write_bytes(b"x")
    assert "no plan of a candidate" in export(pairs, code=2)[0]
    (tmp_path / "songs" / "plans" / "b.000.safetensors").unlink()
    assert "missing, and the song 'b.000' follows it" in export(pairs, code=2)[0]
    assert out.read_bytes() == content
    assert list(out.parent.iterdir()) == [out]


def test_plans_of_two_states_of_the_planner_are_refused_until_one_is_chosen(tmp_path):
    pairs = write(tmp_path, b_000="planner-second", b_001="planner-second")
    error, out = export(pairs, code=2)
    assert "plans of 2 states of the planner: planner-first (3 songs), planner-second (2 songs)" in error
    assert "--planner" in error
    assert not out.exists()
    report, _ = export(pairs, "--planner", "planner-second")
    assert [line["id"] for line in lines(out)] == ["../songs|b.001|b.000"]
    assert "2 left out: a plan of another state of the planner" in report
    assert "no pair has two plans" in export(pairs, "--planner", "planner-third", code=2)[0]


def test_a_pair_across_two_states_is_never_exported(tmp_path):
    pairs = write(tmp_path, a_001="planner-second")
    report, out = export(pairs, "--planner", "planner-first")
    assert [line["id"] for line in lines(out)] == ["../songs|b.001|b.000"]
    assert "1 left out: a plan of another state of the planner" in report


def test_what_cannot_be_exported_is_one_line(tmp_path):
    none = write(tmp_path / "none", plans=dict.fromkeys(PLANS))
    assert "none of its songs follows a plan" in export(none, code=2)[0]
    alike = write(tmp_path / "alike", plans={name: [1] for name in PLANS})
    assert "no pair has two plans to choose between" in export(alike, code=2)[0]
    assert "holds no pairs" in export(tmp_path / "nowhere", code=2)[0]
    pairs = write(tmp_path / "some")
    assert "unknown layout 'trll'. Did you mean 'trl'?" in export(pairs, layout="trll", code=2)[0]
    tiny = write(tmp_path / "tiny", model={"name": "tiny"})
    assert "the plans of model 'tiny' are not text" in export(tiny, code=2)[0]
    nameless = write(tmp_path / "nameless", model={})
    assert "does not say which model made 'a.000'" in export(nameless, code=2)[0]
    foreign = write(tmp_path / "foreign", model={"name": "gone"})
    assert "unknown model 'gone'" in export(foreign, code=2)[0]


def test_a_plan_without_codes_is_refused_by_ace_step(tmp_path):
    plans = {
        name: Plan(planner="p", tensors={"steps": torch.arange(number)})
        for number, name in enumerate(PLANS, start=1)
    }
    pairs = write_planned_pairs(tmp_path, {"name": "ace_step", "checkpoint": "x"}, PROMPTS, plans, PAIRS)
    assert "its plan holds no audio codes" in export(pairs, code=2)[0]


def test_layouts_are_functions_by_name():
    assert all(map(callable, LAYOUTS.values()))
