"""Sixty inputs that people get wrong: one line and exit code 2 for each, and nothing that was computed is lost."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.launch import verb

from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS

pytestmark = pytest.mark.slow

PROMPTS = [
    {"id": "one", "text": "fast rock", "duration_s": 2},
    {"id": "two", "text": "slow ambient", "duration_s": 2},
]


@dataclass(frozen=True)
class World:
    """A folder with a finished loop, from prompts to a checkpoint."""

    folder: Path
    bundle: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    def file(self, name: str, content: str | bytes) -> Path:
        """Write an input that is wrong."""
        path = self.folder / "inputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def prompts(self, *rows: object) -> str:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        text = "".join(f"{line}\n" for line in lines)
        return f"prompts={self.file('prompts.jsonl', text)}"

    def state(self) -> dict[Path, tuple[int, int]]:
        """Size and time of each finished file."""
        files = [path for name in ("s", "sc", "pairs", "t", "d") for path in self.path(name).rglob("*")]
        return {
            path: (path.stat().st_size, path.stat().st_mtime_ns)
            for path in files
            if path.is_file() and path.name != ".lock"
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> World:
    world = World(tmp_path_factory.mktemp("world"), bundle)
    world.path("p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in PROMPTS), encoding="utf-8")
    for number in range(2):
        samples = np.random.default_rng(number).normal(0, 0.1, (44100, 2))
        world.path("songs").mkdir(exist_ok=True)
        soundfile.write(world.path(f"songs/{number}.flac"), samples, 44100)
    for words in (sample(world), score(world), mine(world), train(world), prepare(world)):
        verb(*words)
    return world


def sample(world: World, *more: str) -> list[str]:
    return ["sample", f"prompts={world.path('p.jsonl')}", f"out={world.path('s')}", "per_prompt=3",
            f"model.args.bundle={world.bundle}", "sampling.steps=1", *more]  # fmt: skip


def fresh(world: World, *more: str) -> list[str]:
    """Sampling into a new folder, of prompts that are wrong."""
    return sample(world, f"out={world.path(f'new-{abs(hash(more))}')}", *more)


def score(world: World, *more: str) -> list[str]:
    return ["score", f"samples=[{world.path('s')}]", f"out={world.path('sc')}", "scorers=[production]", *more]


def mine(world: World, *more: str) -> list[str]:
    return ["mine", f"samples=[{world.path('s')}]", f"scores={world.path('sc')}", f"out={world.path('pairs')}",
            "axes=[production.balance]", "rule.args.min_margin=0.01", *more]  # fmt: skip


def train(world: World, *more: str) -> list[str]:
    return ["train", f"data.pairs={world.path('pairs')}", f"out={world.path('t')}",
            f"model.args.bundle={world.bundle}", "train.steps=1", "train.global_batch=2", "train.per_device=2",
            "train.lora.rank=2", "train.trackers=[]", *more]  # fmt: skip


def prepare(world: World, *more: str) -> list[str]:
    return ["prepare", f"songs={world.path('songs')}", f"out={world.path('d')}",
            f"model.args.bundle={world.bundle}", *more]  # fmt: skip


def evaluate(world: World, *more: str) -> list[str]:
    return ["evaluate", f"baseline={world.path('s')}", f"aligned={world.path('s')}", f"scores={world.path('sc')}",
            f"out={world.path('report')}", *more]  # fmt: skip


def round_words(world: World, *more: str) -> list[str]:
    return ["round", f"out={world.path('r')}", f"mining_prompts={world.path('p.jsonl')}",
            f"evaluation_prompts={world.path('p.jsonl')}", f"model.args.bundle={world.bundle}", *more]  # fmt: skip


def other_prompts(world: World) -> list[str]:
    """A comparison of two folders whose prompts share ids and no words."""
    path = world.file("other.jsonl", "".join(f"{json.dumps({**row, 'text': 'jazz'})}\n" for row in PROMPTS))
    if not world.path("other").is_dir():
        verb(*sample(world, f"prompts={path}", f"out={world.path('other')}"))
    return evaluate(world, f"aligned={world.path('other')}", "mined_axes=[production.balance]")


def damaged(world: World, folder: str, pattern: str, size: int = 100) -> Path:
    """A copy of a finished folder, beside it, with one file cut."""
    copy = world.path(f"{folder}-cut")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world.path(folder), copy)
    next(iter(sorted(copy.rglob(pattern)))).open("r+b").truncate(size)
    return copy


def foreign_pair(world: World) -> str:
    """Pairs that name a song which its folder does not have."""
    rows = tables.read_rows(world.path("pairs"), PAIRS)
    from dataclasses import replace

    tables.replace(world.path("foreign"), PAIRS, [replace(rows[0], winner="three.000")])
    return str(world.path("foreign"))


LATIN_1 = '{"id": "a", "text": "café"}'.encode("latin-1")
OUTSIDE = '{"id": "/tmp/x", "audio": "0.flac"}'

Words = Callable[[World], list[str]]

PROMPT_LINES: dict[str, tuple[list[object], str]] = {
    "no prompts": ([], "holds no prompts"),
    "not JSON": (['{"id": "a", text: rock}'], "not valid JSON"),
    "a list": (['["a"]'], "expected an object"),
    "a key that does not exist": ([{"id": "a", "txt": "rock"}], "unknown key 'txt'. Did you mean 'text'?"),
    "no id": ([{"text": "rock"}], "needs an id"),
    "an id with a path": ([{"id": "../a", "text": "rock"}], "may not contain a path separator"),
    "an id of dots": ([{"id": "..", "text": "rock"}], ":1: "),
    "an id used twice": ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], ":2: "),
    "ids that differ in case": ([{"id": "a", "text": "x"}, {"id": "A", "text": "y"}], ":2: "),
    "a number for a text": ([{"id": "a", "text": 5}], "text must be a string"),
    "a duration in words": ([{"id": "a", "text": "x", "duration_s": "long"}], "duration_s must be a number"),
    "a negative duration": ([{"id": "a", "text": "x", "duration_s": -3}], "duration_s"),
    "a duration of NaN": (['{"id": "a", "text": "x", "duration_s": NaN}'], ":1: "),
    "an impossible tempo": ([{"id": "a", "text": "x", "bpm": 5000}], "bpm must be"),
    "a file of lyrics that is not there": ([{"id": "a", "text": "x", "lyrics": "a.LRC"}], "a.LRC"),
    "lyrics as subtitles": ([{"id": "a", "text": "x", "lyrics": "a.srt"}], "a.srt"),
    "a style recording that is not there": ([{"id": "a", "style_audio": "a.flac"}], "a.flac: no such file"),
    "an edit without a song": ([{"id": "a", "text": "x", "edit": {"spans": [[0, 1]]}}], "edit"),
    "an edit that asks for nothing": ([{"id": "a", "text": "x", "edit": {"song": "a.flac"}}], "edit"),
}

CASES: dict[str, tuple[Words, str]] = {
    "prompts that are not there": (lambda w: fresh(w, "prompts=nowhere.jsonl"), "nowhere.jsonl: no such file"),
    "prompts in Latin-1": (
        lambda w: fresh(w, f"prompts={w.file('l.jsonl', LATIN_1)}"),
        "not UTF-8",
    ),
    "a style recording that is no sound": (
        lambda w: [w.file("text.flac", "words")] and fresh(w, w.prompts({"id": "a", "style_audio": "text.flac"})),
        "text.flac",
    ),
    "a key that does not exist": (lambda w: sample(w, "sampling.stps=4"), "Did you mean 'steps'?"),
    "a word without a value": (lambda w: sample(w, "sampling"), "not of the form key=value"),
    "words for a number": (lambda w: sample(w, "seed=first"), "seed"),
    "no songs for a prompt": (lambda w: fresh(w, "per_prompt=0"), "per_prompt"),
    "no steps": (lambda w: fresh(w, "sampling.steps=0"), "steps"),
    "a solver that does not exist": (lambda w: fresh(w, "sampling.solver=eular"), "Did you mean 'euler'?"),
    "guidance of NaN": (lambda w: fresh(w, "sampling.guidance_scale=nan"), "guidance_scale"),
    "a model that does not exist": (lambda w: fresh(w, "model.name=tny"), "Did you mean 'tiny'?"),
    "a bundle that is not there": (lambda w: fresh(w, "model.args.bundle=nowhere"), "nowhere"),
    "an adapter that is not there": (lambda w: fresh(w, "model.args.adapter=nowhere"), "nowhere"),
    "a weight that is no number": (
        lambda w: fresh(w, f"model.args.adapter={w.path('t/checkpoints/step-00000001/export')}@much"),
        "is not a weight",
    ),
    "another configuration in the same folder": (lambda w: sample(w, "seed=5"), "was made with seed=0"),
    "a folder of another verb": (
        lambda w: ["search", *sample(w)[1:3], f"model.args.bundle={w.bundle}"],
        "was made by another verb or version",
    ),
    "an output where no folder can be": (lambda w: sample(w, "out=/proc/songs"), "no folder can be made here"),
    "a shard beyond the last": (lambda w: fresh(w, "shard=2", "shards=2"), "shard must be in [0, 2)"),
    "an output that is a file": (lambda w: sample(w, f"out={w.path('p.jsonl')}"), "p.jsonl"),
    "a configuration that is not there": (lambda w: ["sample", "nowhere.yaml"], "no such configuration"),
    "a preset of another verb": (lambda w: ["sample", "tiny/dpo"], "is a preset of `diffdpo train`"),
    "a configuration that is a list": (lambda w: ["sample", str(w.file("l.yaml", "- a\n"))], "l.yaml"),
    "a configuration that is no YAML": (lambda w: ["sample", str(w.file("b.yaml", "a: [1\n"))], "b.yaml"),
    "a configuration in Latin-1": (
        lambda w: ["sample", str(w.file("c.yaml", "out: café\n".encode("latin-1")))],
        "not UTF-8",
    ),
    "a variable that is not set": (
        lambda w: ["sample", str(w.file("v.yaml", "out: ${NOT_SET_ANYWHERE}/x\n"))],
        "NOT_SET_ANYWHERE",
    ),
    "songs that are not there": (lambda w: prepare(w, "songs=nowhere"), "nowhere"),
    "a folder without songs": (lambda w: prepare(w, f"songs={w.path('t')}"), "no songs here"),
    "an id outside of the folder": (
        lambda w: prepare(w, f"songs={w.file('m.jsonl', OUTSIDE)}"),
        "may not contain a path separator",
    ),
    "a precision that does not exist": (lambda w: prepare(w, "dtype=fp8"), "unknown dtype 'fp8'"),
    "a scorer that does not exist": (lambda w: score(w, "scorers=[producton]"), "Did you mean 'production'?"),
    "a scorer named twice": (lambda w: score(w, "scorers=[production,production]"), "named twice"),
    "windows of negative length": (lambda w: score(w, "window_s=-5"), "window_s"),
    "songs to score that are not there": (lambda w: score(w, "samples=[nowhere]"), "nowhere"),
    "a folder without samples": (lambda w: score(w, f"samples=[{w.path('songs')}]"), "holds no samples"),
    "an axis that does not exist": (lambda w: mine(w, "axes=[production.balanse]"), "Did you mean"),
    "a negative weight": (lambda w: mine(w, "weights={production.balance: -1}"), "weights"),
    "a rule that does not exist": (lambda w: mine(w, "rule.name=best"), "best"),
    "margins that no pair has": (
        lambda w: mine(w, f"out={w.path('none')}", "rule.args.min_margin=99"),
        "no pairs mined",
    ),
    "scores that are not there": (lambda w: mine(w, "scores=nowhere"), "nowhere: no such folder"),
    "a damaged part of a table": (
        lambda w: mine(w, f"scores={damaged(w, 'sc', 'part-*.parquet')}", f"out={w.path('none')}"),
        "damaged",
    ),
    "pairs that are not there": (lambda w: train(w, "data.pairs=nowhere"), "nowhere: no such folder"),
    "an objective that does not exist": (lambda w: train(w, "objective.name=dpoo"), "Did you mean 'dpo'?"),
    "an argument of another objective": (lambda w: train(w, "objective.args.group=4"), "unknown key"),
    "a rate of NaN": (lambda w: train(w, "train.learning_rate=nan"), "learning_rate"),
    "no layers to adapt": (lambda w: train(w, "train.lora.targets=[]"), "targets"),
    "workers below zero": (lambda w: train(w, "train.workers=-1"), "workers"),
    "a batch that cannot be divided": (lambda w: train(w, "train.per_device=3"), "global_batch=2"),
    "half precision without a GPU": (lambda w: train(w, f"out={w.path('none')}", "train.precision=fp16"), "fp16"),
    "another rate in the same folder": (lambda w: train(w, "train.learning_rate=1"), "was made with"),
    "pairs of songs that are not there": (
        lambda w: train(w, f"data.pairs={foreign_pair(w)}", f"out={w.path('none')}"),
        "three.000",
    ),
    "a damaged checkpoint": (
        lambda w: train(w, f"out={damaged(w, 't', 'optimizer.bin')}", "train.steps=2"),
        "damaged",
    ),
    "a judge's name misspelt": (lambda w: evaluate(w, "mined_axes=[production.balanse]"), "Did you mean"),
    "other prompts with the same ids": (other_prompts, "is another than in"),
    "songs of one side that are not there": (lambda w: evaluate(w, "aligned=nowhere"), "nowhere"),
    "prompts both mined and evaluated": (round_words, "both the mining and the evaluation prompts"),
    "a key that the round sets": (lambda w: round_words(w, "sample.seed=3"), "set by the round itself"),
    "lyrics in GBK": (lambda w: ["lyrics", "check", str(w.file("g.lrc", "[00:01.00]歌".encode("gbk")))], "UTF-8"),
    "ratings with a column of another name": (
        lambda w: ["import-ratings", str(w.file("r.csv", "sample,thum\none.000,up\n")), "--samples",
                   str(w.path("s")), "--out", str(w.path("none"))],
        "unknown column",
    ),
    "weights behind a pointer": (
        lambda w: ["convert", str(w.file("m.pt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")),
                   str(w.path("none.pt"))],
        "git lfs pull",
    ),
}  # fmt: skip


def all_cases() -> dict[str, tuple[Words, str]]:
    lines = {
        f"prompts: {name}": (lambda w, rows=rows: fresh(w, w.prompts(*rows)), text)
        for name, (rows, text) in PROMPT_LINES.items()
    }
    return lines | CASES


def test_there_are_sixty() -> None:
    assert len(all_cases()) >= 60


@pytest.mark.parametrize("name", all_cases())
def test_a_bad_input_is_one_line_and_nothing_is_lost(
    world: World, name: str, capsys: pytest.CaptureFixture
) -> None:
    words, text = all_cases()[name]
    line = words(world)
    before = world.state()
    answer = verb(*line, code=2)
    with capsys.disabled():
        print(f"\n{name} | 2 | {answer.replace(str(world.folder), '…')}", end="")
    assert text in answer
    assert len(answer) < 500
    assert before.items() <= world.state().items()
