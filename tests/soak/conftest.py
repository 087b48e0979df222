"""The table of the soak tier: a row a file, with its number of tests and its seconds."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

TITLES = {
    "test_kills": "A verb, killed at any moment and run again, leaves what a run leaves that never stopped",
    "test_objectives": "Each objective, all weights and LoRA: two processes give the trajectory of one",
    "test_matrix": "Published models, all weights, split or not, two processes, ZeRO-2 and 3: one trajectory",
    "test_layouts": "torch.compile, checkpointing, micro-batches: one trajectory",
    "test_batches": "A song of a batch of random lengths is the song alone, under each solver",
    "test_estimates": "The memory in a preset's comment is the estimate for it",
    "test_intervals": "95 % intervals over prompts hold the true effect",
}
RESULTS: dict[str, list[tuple[str, float]]] = defaultdict(list)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak-table", type=Path, help="Write the table of the soak tier into this Markdown page"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Seconds of a test count with its fixtures; its outcome is the worst of its phases."""
    name = Path(report.nodeid.split("::")[0]).stem
    if report.when == "call" or report.failed:
        RESULTS[name].append((report.outcome, report.duration))
    else:
        RESULTS[name].append(("", report.duration))


def table() -> Iterator[str]:
    """The rows in Markdown."""
    yield "| what | tests | failed | minutes |"
    yield "| --- | --- | --- | --- |"
    for name, title in TITLES.items():
        outcomes = [outcome for outcome, _ in RESULTS[name] if outcome]
        minutes = sum(seconds for _, seconds in RESULTS[name]) / 60
        yield f"| {title} (`{name}.py`) | {len(outcomes)} | {outcomes.count('failed')} | {minutes:.1f} |"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = list(table())
    terminalreporter.write_line("\n".join(rows))
    path: Path | None = config.getoption("--soak-table")
    if path is not None:
        head = path.read_text().split("| what |")[0]
        path.write_text(head + "\n".join(rows) + "\n")
