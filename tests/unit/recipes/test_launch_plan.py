"""The dry run of several processes: examples of each, the launch, and what is refused."""

import pytest
from support.launch import verb

from diffdpo.recipes.launch_plan import LaunchPlan, launch_command

pytestmark = pytest.mark.slow


def plan(bundle, pairs, *more, code=0):
    words = [
        "tiny/dpo",
        "out=none",
        f"data.pairs={pairs}",
        f"model.args.bundle={bundle}",
        "train.global_batch=8",
    ]
    return verb("train", *words, "train.per_device=2", "--dry-run", *more, code=code)


def test_the_ranks_share_the_positions_of_the_first_step(bundle, pairs):
    lines = plan(bundle, pairs, "--ranks", "2", "--backend", "fsdp2").splitlines()
    ranks = [line for line in lines if line.startswith("# rank ")]
    assert [line.split(": ")[1] for line in ranks] == [
        "step 1, positions 0 1 | 4 5",
        "step 1, positions 2 3 | 6 7",
    ]
    names = [name for line in ranks for name in line.split(": ")[2].split(", ")]
    assert len(set(names)) == 8  # of twelve pairs
    assert "# FSDP2 on 2 process(es), 1 machine(s); sharded: gradients, optimizer, weights" in lines
    assert any("gpu_8_fsdp2.yaml --num_processes 2 -m diffdpo train tiny/dpo" in line for line in lines)
    assert lines[-1].startswith("# peak")


@pytest.mark.parametrize("device", [("device=cpu",), ("--device", "cpu")])
def test_a_device_can_be_named(bundle, pairs, device):
    assert "# rank 1: step 1" in plan(bundle, pairs, "--ranks", "2", *device)


def test_processes_that_share_songs_share_positions(bundle, pairs):
    lines = plan(bundle, pairs, "train.context_parallel=2", "--ranks", "2").splitlines()
    assert [line.split(": ")[1] for line in lines if line.startswith("# rank ")] == [
        "step 1, positions 0 1 | 2 3 | 4 5 | 6 7"
    ] * 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--ranks", "3"), "is not a multiple of train.per_device=2 x 3"),
        (("--ranks", "2", "--backend", "zero2", "train.optimizer=adamw_8bit"), "DeepSpeed shards moments"),
        (("--ranks", "2", "--backend", "zero4"), "backend"),
        (("--ranks", "3", "--per-node", "2"), "no whole number of machines"),
        (("--ranks", "2", "--offload"), "offload to the CPU"),
        (("--ranks", "0"), "ranks must be at least 1"),
        (("--backend", "fsdp2"), "--per-node, --backend and --offload belong to --dry-run with --ranks"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_line(bundle, pairs, more, message):
    assert message in plan(bundle, pairs, *more, code=2)


def test_two_machines_need_to_know_each_other():
    command = launch_command(LaunchPlan(16, 8, "fsdp2"), "CONFIG")
    assert "gpu_2x8_fsdp2.yaml --num_processes 16 --num_machines 2 --machine_rank" in command
    assert launch_command(LaunchPlan(), "CONFIG") == "diffdpo train CONFIG"
