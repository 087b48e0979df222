"""The plan of the search bench: which entries share songs."""

from pathlib import Path

from tools.bench.search_plan import read_plan, song_source

PLAN = Path(__file__).parents[3] / "tools" / "bench" / "search_plan.yaml"


def test_only_entries_with_the_same_songs_share_them():
    plan = read_plan(PLAN)
    by_name = {entry.name: entry for entry in plan}
    assert len(by_name) == len(plan)
    sources = {name: song_source(plan, entry).name for name, entry in by_name.items()}
    shared = {name: source for name, source in sources.items() if name != source}
    assert shared == {
        "style: best of N": "best of N",
        "mined axes: best of N": "best of N",
        "mined axes: aligned": "aligned",
    }


def test_an_entry_with_more_songs_makes_its_own(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("- {name: a, budgets: [4]}\n- {name: b, budgets: [8]}\n- {name: c, budgets: [2, 8]}\n")
    plan = read_plan(path)
    assert [song_source(plan, entry).name for entry in plan] == ["a", "b", "b"]
