"""What the bench of start-up runs: every verb of the command line, with a preset of its own where there is one."""

from diffdpo import presets
from diffdpo.cli import VERBS
from tools import bench_start


def test_every_verb_is_measured():
    assert tuple(VERBS) == bench_start.VERBS
    table = bench_start.commands(bench_start.ROOT, by_path=False, typos=["mine"])
    assert {f"{verb} --dry-run" for verb in VERBS} | {
        "help",
        "version",
        "presets",
        "mine, misspelt key",
    } == set(table)


def test_presets_are_named_as_the_command_line_takes_them():
    for verb in VERBS:
        for name in bench_start.preset(verb, bench_start.ROOT, by_path=False):
            (path,) = bench_start.preset(verb, bench_start.ROOT, by_path=True)
            assert str(presets.find_preset(verb, name)) == path


def test_exit_code_and_errors_are_those_of_the_process():
    code, cost, text = bench_start.run(["-c", "import sys; sys.exit('no')"], bench_start.ROOT)
    assert (code, text.strip()) == (1, "no")
    assert set(cost) == {"cpu_s", "peak_mb"}


def test_a_light_start_loads_nothing_heavy():
    assert bench_start.loaded_modules(["--version"], bench_start.ROOT) == (0, [])
