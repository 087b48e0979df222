"""The tables of the soak tier: a row a file, with its tests and minutes; and the coverage of intervals."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

TITLES = {
    "test_kills": "A verb, killed at any moment and run again, leaves what a run leaves that never stopped",
    "test_listen": "A listening test, killed under fifty listeners, has every acknowledged vote",
    "test_objectives": "Each objective, all weights and LoRA: two processes give the trajectory of one",
    "test_matrix": "Published models, all weights, split or not, two processes, ZeRO-2 and 3: one trajectory",
    "test_compile": "Compiled blocks on two processes, with ZeRO-2 and 3: the uncompiled steps",
    "test_context": "Songs divided over two and four of four processes, three models: one trajectory",
    "test_layouts": "torch.compile, checkpointing, micro-batches; every backend in every layout: one trajectory",
    "test_batches": "A song of a batch of random lengths is the song alone, under each solver",
    "test_estimates": "The memory in a preset's comment is the estimate for it",
    "test_intervals": "95 % intervals over prompts hold the true effect",
    "test_votes": "Rankings from votes of honest and dishonest raters; alarms of drift, true and false",
    "test_ray": "A thousand clips scored by two workers of a Ray cluster, one killed: those of one process",
    "test_gpu_check": "Every part of `gpu-check`, tiny networks on the CPU",
    "test_coverage": "Every kind of interval, by law of the effects and number of prompts",
}
COVERAGE = "coverage.md"
"""The page of coverage, beside that of the soak tier."""
HEADS = {
    "coverage": "| effects | prompts | ours | Student's t | studentised bootstrap | BCa | percentile bootstrap "
    "| width, Student's t = 1 |",
    "spread": "| interval | prompts | ours |",
}
"""The tables of that page, by the property that tests record."""
RESULTS: dict[str, list[tuple[str, float]]] = defaultdict(list)
ROWS: dict[str, list[str]] = defaultdict(list)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak-table", type=Path, help="Write the table of the soak tier into this Markdown page"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Seconds of a test count with its fixtures; its outcome is the worst of its phases."""
    name = Path(report.nodeid.split("::")[0]).stem
    if report.when == "call":
        for key, values in report.user_properties:
            cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in values]
            ROWS[key].append(f"| {' | '.join(cells)} |")
    if report.when == "call" or report.failed:
        RESULTS[name].append((report.outcome, report.duration))
    else:
        RESULTS[name].append(("", report.duration))


def table(page: str) -> Iterator[str]:
    """The rows in Markdown; of a file without tests in this run, its row on the page as it is."""
    yield "| what | tests | failed | minutes |"
    yield "| --- | --- | --- | --- |"
    earlier = {row.rsplit("(`", 1)[-1].split(".py")[0]: row for row in page.splitlines() if ".py`)" in row}
    for name, title in TITLES.items():
        if name not in RESULTS:
            yield from [earlier[name]] if name in earlier else []
            continue
        outcomes = [outcome for outcome, _ in RESULTS[name] if outcome]
        minutes = sum(seconds for _, seconds in RESULTS[name]) / 60
        yield f"| {title} (`{name}.py`) | {len(outcomes)} | {outcomes.count('failed')} | {minutes:.1f} |"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    path: Path | None = config.getoption("--soak-table")
    page = path.read_text() if path is not None and path.is_file() else ""
    rows = list(table(page))
    terminalreporter.write_line("\n".join(rows))
    if path is not None:
        path.write_text(page.split("| what |")[0] + "\n".join(rows) + "\n")
        if ROWS:
            write_coverage(path.with_name(COVERAGE))


def write_coverage(path: Path) -> None:
    """Write the tables of coverage below the text of their page."""
    tables = ["\n".join([head, separator(head), *ROWS[key]]) for key, head in HEADS.items() if ROWS[key]]
    text = path.read_text().split("\n| ")[0].rstrip()
    path.write_text(text + "\n\n" + "\n\n".join(tables) + "\n")


def separator(head: str) -> str:
    """The line below a table's head."""
    return "|" + " --- |" * (head.count("|") - 1)
