"""Real launches of two processes, under DDP and FSDP2: the trajectory is that of one process.

ACE-Step and Stable Audio 3, and the tiny model in every layout; `test_zero.py` has DeepSpeed. `make soak` has every
combination (`tests/soak/test_matrix.py`, `tests/soak/test_layouts.py`).
"""

import json
import signal
import subprocess

import psutil
import pytest
from support.launch import ROOT, environment, rows, stop_while, torchrun_words, train_many, verb
from support.layouts import EXTRAS, check_backend, layout_words, same_numbers
from support.model_matrix import SPLIT, same_steps, train, words

from diffdpo.threads import single_thread
from diffdpo.training.checkpoint import latest_checkpoint

pytestmark = pytest.mark.slow

LAUNCHES = {
    "two": {
        ("ace_step", "full"): (),
        ("ace_step", "dora"): (SPLIT,),
        ("stable_audio_3", "lora"): (),
        ("stable_audio_3", "int8"): (SPLIT,),
    },
    "fsdp2": {
        ("ace_step", "dora"): (),
        ("stable_audio_3", "full"): (SPLIT,),
    },
}
"""By launcher the runs of one launch, model and weights, and how their steps are computed."""
RUNS = [(launcher, *run) for launcher, runs in LAUNCHES.items() for run in runs]
LAYOUT_RUNS = {
    "two": [("2x4", "full"), ("2x2.2", "full"), ("2x2.2", "lora")],
    "fsdp2": [("2x2.2", "full"), ("2x2.2", "lora")],
}
"""By launcher the layouts of the tiny model, and its weights."""
LAYOUT_CASES = [
    (launcher, layout, weights, extra)
    for launcher, runs in LAYOUT_RUNS.items()
    for layout, weights in runs
    for extra in (EXTRAS if launcher == "two" else ("",))
]
"""Every layout under DDP with a budget of frames, too."""
REFUSED = {
    "train.ema=0.9": "train.ema: FSDP2 shards the parameters",
    "train.reference.kind=ema": "train.reference.kind=ema: FSDP2 shards the weights it would follow",
    "train.optimizer=adamw_8bit": "train.optimizer=adamw_8bit: FSDP2 shards moments",
    "train.reference.cached_draws=2": "train.reference.cached_draws: under FSDP2 all processes",
}
BF16_WEIGHTS = ("bf16_master", "bf16_stochastic")
ALONE = (("1x8", "full", "budget"), ("1x8", "full", ""), ("1x8", "lora", ""), ("1x2.4", "full", ""))
PREEMPTED = ("train.strategy=fsdp2", "train.steps=100000", "train.save_every=100000", "train.lora.rank=4")


def case_folder(folder, launcher, layout, weights, extra):
    return folder / launcher / "-".join((layout, weights, extra))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("launches")


@pytest.fixture(scope="module")
def preempted(folder, bundle, pairs):
    """A run under plain torchrun, of which one process gets SIGTERM: the run's folder, the end of its output, and
    the step that it saved."""
    out = folder / "fsdp2" / "preempted"
    process = subprocess.Popen(
        [*torchrun_words(), "-m", "diffdpo", "train", *layout_words(out, bundle, pairs, "2x2.2"), *PREEMPTED],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    stop_while(process, lambda: (out / "metrics.jsonl").is_file() and rows(out))
    process.send_signal(signal.SIGCONT)
    workers = psutil.Process(process.pid).children()
    workers[-1].send_signal(signal.SIGTERM)  # the other learns of it
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-4000:]
    return out, errors, json.loads((latest_checkpoint(out / "checkpoints") / "manifest.json").read_text())


@pytest.fixture(scope="module")
def launched(folder, published_models, bundle, pairs, preempted):
    """The errors of all runs, a launch for each launcher."""
    errors = {}
    for launcher, runs in LAUNCHES.items():
        lines = {
            (launcher, *run): words(
                folder / launcher / "-".join(run), pairs, published_models[run[0]], run[1], "train.per_device=1",
                *runs[run],
            )
            for run in runs
        }  # fmt: skip
        for case in LAYOUT_CASES:
            if case[0] == launcher:
                lines[case] = layout_words(
                    case_folder(folder, *case), bundle, pairs, case[1], weights=case[2], extra=case[3]
                )
        if launcher == "two":
            lines |= {name: replica_line(folder, bundle, pairs, name) for name in BF16_WEIGHTS}
        if launcher == "fsdp2":
            lines |= fsdp_lines(folder, bundle, pairs, preempted)
        errors |= dict(zip(lines, train_many(folder, launcher, list(lines.values())), strict=True))
    return errors


def replica_line(folder, bundle, pairs, weights):
    """A training of weights in bf16 that leaves hashes of what each process holds."""
    line = layout_words(folder / "two" / weights, bundle, pairs, "2x2.2")
    return ["replicas", *line, "train.precision=bf16", f"train.weights={weights}"]


def fsdp_lines(folder, bundle, pairs, preempted):
    """What FSDP2 alone is asked for: to refuse, to show its tensors, and to go on where a signal stopped it."""
    manifest = preempted[2]
    lines = {}
    for number, word in enumerate(REFUSED):
        line = layout_words(folder / "fsdp2" / f"refused-{number}", bundle, pairs, "2x4", weights="lora")
        lines[word] = [*line, word]
    frozen = layout_words(folder / "inspect", bundle, pairs, "2x4")
    lines["inspect"] = ["inspect", *frozen, "train.reference.kind=frozen_copy"]
    steps = f"train.steps={manifest['step'] + 2}"
    for name in ("preempted", "whole"):
        own = layout_words(folder / "fsdp2" / name, bundle, pairs, "2x2.2")
        lines[name] = [*own, *PREEMPTED, steps]
    return lines


@pytest.fixture(scope="module")
def alone(folder, bundle, pairs):
    """The trajectories of one process, by layout and weights."""
    trajectories = {}
    for layout, weights, extra in ALONE:
        out = folder / "alone" / f"{layout}-{weights}{extra}"
        with single_thread():
            verb("train", *layout_words(out, bundle, pairs, layout, weights=weights, extra=extra))
        trajectories[layout, weights] = rows(out)
    return trajectories


@pytest.mark.parametrize(("launcher", "name", "weights"), RUNS)
def test_two_processes_follow_the_trajectory_of_one(
    folder, published_models, pairs, launched, launcher, name, weights
):
    assert launched[launcher, name, weights] == ""
    out = folder / launcher / f"{name}-{weights}"
    check_backend(out, launcher)
    expected = train(folder / "one" / f"{launcher}-{name}-{weights}", pairs, published_models[name], weights)
    assert expected[-1]["margin"] != 0.0
    same_steps(expected, rows(out), 1e-5)


@pytest.mark.parametrize(("launcher", "layout", "weights", "extra"), LAYOUT_CASES)
def test_every_layout_and_backend_makes_the_same_steps(
    folder, launched, alone, launcher, layout, weights, extra
):
    assert launched[launcher, layout, weights, extra] == ""
    out = case_folder(folder, launcher, layout, weights, extra)
    check_backend(out, launcher)
    same_numbers(alone["1x8", weights], out)


@pytest.mark.parametrize("name", ["1x2.4-full", "1x8-fullbudget"])
def test_accumulation_and_a_budget_on_one_process_make_the_same_steps(folder, alone, name):
    same_numbers(alone["1x8", "full"], folder / "alone" / name)


@pytest.mark.parametrize("weights", BF16_WEIGHTS)
def test_processes_round_weights_in_bf16_alike(folder, launched, alone, weights):
    """Replicas stay equal bit for bit, and move; losses and gradient norms are those of fp32 to 5 %."""
    assert launched[weights] == ""
    out = folder / "two" / weights
    one, other = (json.loads((out / f"replica-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert len({sha256 for _, sha256 in one}) == 3
    assert all("torch.bfloat16" in dtypes for dtypes, _ in one)
    for expected, actual in zip(alone["1x8", "full"], rows(out), strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], rel=5e-2)
        assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=5e-2)


@pytest.mark.parametrize("word", REFUSED)
def test_what_fsdp2_cannot_shard_is_refused(launched, word):
    assert launched[word].startswith(REFUSED[word])


def test_fsdp2_shards_every_tensor_and_saves_whole_ones(folder, launched):
    assert launched["inspect"] == ""
    ranks = [json.loads((folder / "inspect" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    for kind in ("parameters", "moments", "reference"):
        assert ranks[0][kind].keys() == ranks[1][kind].keys() == ranks[0]["parameters"].keys()
        for name, (is_sharded, count, own) in ranks[0][kind].items():
            other_sharded, _, other = ranks[1][kind][name]
            assert (is_sharded, other_sharded) == (True, True), f"{kind}: {name}"
            assert (own, own + other) == (-(-count // 2), count), f"{kind}: {name}"
    for rank in ranks:
        before, expected, after = rank["norm"]
        assert before == pytest.approx(expected, rel=1e-6)
        assert after == pytest.approx(0.5, rel=1e-5)
        assert rank["restored"]
        assert rank["reference_is_start"]
    assert ranks[0]["exported"] == sorted(ranks[0]["parameters"])
    assert ranks[1]["exported"] == []


def test_a_signal_to_one_process_saves_all_and_the_run_goes_on_bit_for_bit(folder, launched, preempted):
    out, errors, manifest = preempted
    assert (launched["preempted"], launched["whole"]) == ("", "")
    line = f"saved {out / 'checkpoints' / 'step-{:08d}'.format(manifest['step'])}; the same command resumes"
    assert line in " ".join(errors.split())
    assert manifest["step"] < 1000
    assert manifest["distributed"] == "FSDP2"
    assert rows(out) == rows(folder / "fsdp2" / "whole")
    assert len(rows(out)) == manifest["step"] + 2
