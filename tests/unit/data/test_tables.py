"""Tables that survive kills and damage."""

import pytest

from diffdpo.data import tables
from diffdpo.errors import DataError

KEY = ("id",)


def row(name, value):
    return {"id": name, "value": value}


def test_a_missing_table_is_empty(tmp_path):
    assert tables.read(tmp_path / "t", KEY) == []


def test_rows_of_all_processes_are_read_as_one_table(tmp_path):
    tables.append(tmp_path / "t", [row("a", 1)], rank=0)
    tables.append(tmp_path / "t", [row("b", 2)], rank=1)
    tables.append(tmp_path / "t", [row("c", 3)], rank=0)
    assert sorted(r["id"] for r in tables.read(tmp_path / "t", KEY)) == ["a", "b", "c"]


def test_the_last_written_row_of_a_key_counts(tmp_path):
    tables.append(tmp_path / "t", [row("a", 1)])
    tables.append(tmp_path / "t", [row("a", 2)])
    assert tables.read(tmp_path / "t", KEY) == [row("a", 2)]


def test_compacting_keeps_the_rows_and_leaves_one_file(tmp_path):
    for i in range(5):
        tables.append(tmp_path / "t", [row(f"r{i}", i)], rank=i % 2)
    before = sorted(tables.read(tmp_path / "t", KEY), key=lambda r: r["id"])
    tables.compact(tmp_path / "t", KEY)
    assert len(list((tmp_path / "t").iterdir())) == 1
    assert tables.read(tmp_path / "t", KEY) == before
    tables.append(tmp_path / "t", [row("r0", 99)])
    assert row("r0", 99) in tables.read(tmp_path / "t", KEY)


def test_what_a_killed_writer_left_is_not_read(tmp_path):
    tables.append(tmp_path / "t", [row("a", 1)])
    (tmp_path / "t" / ".part-00000-000001.parquet.123.partial").write_bytes(b"PAR1 half")
    assert tables.read(tmp_path / "t", KEY) == [row("a", 1)]


def test_a_damaged_part_is_named_with_the_remedy(tmp_path):
    tables.append(tmp_path / "t", [row("a", 1)])
    bad = tmp_path / "t" / "part-00003-000000.parquet"
    bad.write_bytes((tmp_path / "t" / "part-00000-000000.parquet").read_bytes()[:40])
    with pytest.raises(DataError, match=r"part-00003-000000\.parquet: damaged.*delete it and run again"):
        tables.read(tmp_path / "t", KEY)


def test_a_table_of_another_kind_is_refused(tmp_path):
    tables.append(tmp_path / "t", [{"other": 1}])
    with pytest.raises(DataError, match="no column 'id'"):
        tables.read(tmp_path / "t", KEY)
