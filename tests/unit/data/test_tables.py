"""Tables that survive kills, damage, wrong clocks and other versions."""

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS, PairRow, pair_columns
from diffdpo.data.samples import SAMPLES, SampleRow
from diffdpo.data.schema import TableSpec
from diffdpo.data.scores import SCORES, WINDOWS, ScoreRow, WindowRow
from diffdpo.errors import DataError
from diffdpo.mining import Pair


@dataclass(frozen=True, kw_only=True)
class Row:
    id: str
    value: int
    note: str = "-"
    starts_s: tuple[float, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)


SPEC = TableSpec("things", Row, key=("id",))


def row(name, value):
    return Row(id=name, value=value)


def parts(folder):
    return sorted(path.name for path in (folder / SPEC.folder).glob("*.parquet"))


def old_part(folder, name, rows, spec=SPEC):
    """A part as it was written before tables had versions."""
    (folder / spec.folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / spec.folder / name)


def shuffle_clock(folder, seed):
    """Give every part a modification time at random, in the past or in the future."""
    generator = random.Random(seed)
    for path in (folder / SPEC.folder).glob("*"):
        os.utime(path, (generator.uniform(0, 4e9),) * 2)


def test_a_missing_table_is_empty(tmp_path):
    assert tables.read_rows(tmp_path, SPEC) == []
    assert tables.read_columns(tmp_path, SPEC, ["value"]).num_rows == 0


def test_rows_of_all_processes_are_read_as_one_table(tmp_path):
    tables.append(tmp_path, SPEC, [row("a", 1)], rank=0)
    tables.append(tmp_path, SPEC, [row("b", 2)], rank=1)
    tables.append(tmp_path, SPEC, [row("c", 3)], rank=0)
    assert [r.id for r in tables.read_rows(tmp_path, SPEC)] == ["a", "b", "c"]


def test_a_part_is_numbered_above_all_parts_that_are_there_whoever_wrote_them(tmp_path):
    for rank in (3, 0, 1):
        tables.append(tmp_path, SPEC, [row("a", rank)], rank=rank)
    assert parts(tmp_path) == [f"part-s0000000{n}-r0000{rank}.parquet" for n, rank in enumerate((3, 0, 1))]
    assert tables.read_rows(tmp_path, SPEC) == [row("a", 1)]


def test_the_clock_of_the_file_system_changes_nothing(tmp_path):
    for value in range(6):
        tables.append(tmp_path, SPEC, [row("a", value), row(f"b{value}", value)], rank=value % 2)
    rows = tables.read_rows(tmp_path, SPEC)
    assert rows[-2:] == [row("a", 5), row("b5", 5)]
    backwards = sorted((tmp_path / SPEC.folder).iterdir(), reverse=True)
    for second, path in enumerate(backwards):
        os.utime(path, (second, second))
    assert tables.read_rows(tmp_path, SPEC) == rows
    for seed in range(20):
        shuffle_clock(tmp_path, seed)
        assert tables.read_rows(tmp_path, SPEC) == rows
    tables.compact(tmp_path, SPEC)
    assert sorted(tables.read_rows(tmp_path, SPEC), key=str) == sorted(rows, key=str)


def test_two_processes_of_one_rank_never_write_over_each_other(tmp_path):
    """Both saw no part when they began; the second to be named finds its name taken."""
    table, schema = tables.to_columns([row("a", 1)], SPEC), SPEC.schema
    partial = tmp_path / "partial"
    for name in ("one", "two"):
        tables._write(partial.with_name(name), table, schema)
    path = tmp_path / "part-s00000000-r00000.parquet"
    assert tables._name(tmp_path / "one", path)
    assert not tables._name(tmp_path / "two", path)


def test_compacting_keeps_the_rows_and_leaves_one_file_ordered_by_key(tmp_path):
    for i in (3, 1, 4, 0, 2):
        tables.append(tmp_path, SPEC, [row(f"r{i}", i)], rank=i % 2)
    before = sorted(tables.read_rows(tmp_path, SPEC), key=lambda r: r.id)
    tables.compact(tmp_path, SPEC)
    assert parts(tmp_path) == ["part-s00000005-r00000.parquet"]
    assert tables.read_rows(tmp_path, SPEC) == before
    tables.append(tmp_path, SPEC, [row("r0", 99)])
    assert row("r0", 99) in tables.read_rows(tmp_path, SPEC)
    assert len(tables.read_rows(tmp_path, SPEC)) == 5


def test_replacing_keeps_the_order_given_and_forgets_what_was_there(tmp_path):
    tables.append(tmp_path, SPEC, [row("z", 0)], rank=4)
    tables.replace(tmp_path, SPEC, [row("b", 1), row("a", 2), row("b", 3)])
    assert tables.read_rows(tmp_path, SPEC) == [row("a", 2), row("b", 3)]
    tables.replace(tmp_path, SPEC, [])
    assert parts(tmp_path) == []


KEYS = st.sampled_from("abcde")
APPEND = st.tuples(st.just("append"), st.integers(0, 3), st.lists(KEYS, min_size=1, max_size=3))
KILLED_APPEND = st.tuples(st.just("killed append"), st.integers(0, 3), st.just([]))
COMPACT = st.tuples(st.just("compact"), st.integers(0, 9), st.just([]))
KILLED_COMPACT = st.tuples(st.just("killed compact"), st.integers(0, 9), st.just([]))


@pytest.mark.slow
@settings(max_examples=60)
@given(
    events=st.lists(APPEND | APPEND | KILLED_APPEND | COMPACT | KILLED_COMPACT, max_size=14),
    old=st.lists(st.tuples(st.integers(0, 2), KEYS), max_size=3),
)
def test_any_interleaving_reads_as_the_dict_of_last_writes(tmp_path_factory, events, old):
    folder = tmp_path_factory.mktemp("table")
    expected, clock = {}, 0
    for number, (rank, key) in enumerate(old):
        clock += 1
        old_part(folder, f"part-{rank:05d}-{number:06d}.parquet", [{"id": key, "value": clock}])
        expected[key] = clock
    for event, number, keys in events:
        before = {path: path.read_bytes() for path in (folder / SPEC.folder).glob("*.parquet")}
        if event == "append":
            clock += 1
            tables.append(folder, SPEC, [row(key, clock) for key in keys], rank=number)
            expected |= dict.fromkeys(keys, clock)
        elif event == "killed append":
            (folder / SPEC.folder).mkdir(exist_ok=True)
            (folder / SPEC.folder / f".r{number:05d}.{clock}.partial").write_bytes(b"PAR1 half")
        else:
            tables.compact(folder, SPEC)
            if event == "killed compact":  # some of the parts it stands for are still there
                for path in random.Random(number).sample(sorted(before), len(before) * number // 10):
                    path.write_bytes(before[path])
        shuffle_clock(folder, number)
        assert {r.id: r.value for r in tables.read_rows(folder, SPEC)} == expected


def test_parts_of_the_old_names_count_by_their_number(tmp_path):
    old_part(tmp_path, "part-00007-000001.parquet", [{"id": "a", "value": 1}])
    old_part(tmp_path, "part-00000-000002.parquet", [{"id": "a", "value": 2}, {"id": "b", "value": 2}])
    old_part(tmp_path, "elsewhere.parquet", [{"id": "b", "value": 0}])
    assert tables.read_rows(tmp_path, SPEC) == [row("a", 2), row("b", 2)]
    tables.append(tmp_path, SPEC, [row("b", 3)], rank=5)
    assert "part-s00000003-r00005.parquet" in parts(tmp_path)
    assert tables.read_rows(tmp_path, SPEC) == [row("a", 2), row("b", 3)]


def test_what_a_killed_writer_left_is_not_read(tmp_path):
    tables.append(tmp_path, SPEC, [row("a", 1)])
    (tmp_path / SPEC.folder / ".part-00000-000001.parquet.123.partial").write_bytes(b"PAR1 half")
    (tmp_path / SPEC.folder / ".r00000.0123.partial").write_bytes(b"PAR1 half")
    assert tables.read_rows(tmp_path, SPEC) == [row("a", 1)]


def test_a_damaged_part_is_named_with_the_remedy(tmp_path):
    tables.append(tmp_path, SPEC, [row("a", 1)])
    whole = (tmp_path / SPEC.folder / parts(tmp_path)[0]).read_bytes()
    (tmp_path / SPEC.folder / "part-00003-000000.parquet").write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"part-00003-000000\.parquet: damaged.*delete it and run again"):
        tables.read_rows(tmp_path, SPEC)


def test_columns_without_content_have_their_types(tmp_path):
    tables.append(tmp_path, SPEC, [row("a", 1)])
    stored = pq.read_schema(tmp_path / SPEC.folder / parts(tmp_path)[0])
    assert stored.field("starts_s").type == pa.list_(pa.float64())
    assert pa.types.is_map(stored.field("margins").type)
    for kind in (WINDOWS, PAIRS, SCORES, SAMPLES):
        assert kind.schema.empty_table().schema.types == kind.schema.types


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (
            WINDOWS,
            WindowRow(
                sha256="s", scorer="x", fingerprint="f", axis="a", window="5/5", starts_s=(), values=()
            ),
        ),
        (
            PAIRS,
            PairRow(
                prompt_id="p", samples="../s", winner="w", loser="l", margins={"b": 1.5, "a": -0.25},
                spans=((0.5, 1.0), (2.0, 3.25)),
            ),
        ),
        (SCORES, ScoreRow(sha256="s", scorer="x", fingerprint="f", axis="a", value=float("inf"))),
        (SAMPLES, SampleRow(sample_id="ä.000", prompt_id="ä", edit='{"song": "x"}')),
    ],
)  # fmt: skip
def test_rows_come_back_as_they_were_written(tmp_path, spec, value):
    tables.append(tmp_path, spec, [value])
    assert tables.read_rows(tmp_path, spec) == [value]


def test_a_column_can_be_read_alone(tmp_path):
    tables.append(tmp_path, SPEC, [row("a", 1), row("b", 2)])
    tables.append(tmp_path, SPEC, [row("a", 3)])
    table = tables.read_columns(tmp_path, SPEC, ["value"])
    assert table.column_names == ["value"]
    assert table["value"].to_pylist() == [2, 3]
    assert tables.read_distinct(tmp_path, SPEC, ["note", "value"]) == {("-", 2), ("-", 3)}


class TestVersions:
    """Version 2 of a table has one name changed and one column more."""

    @staticmethod
    def upgrade(table, version):
        names = ["value" if name == "amount" else name for name in table.column_names]
        return table.rename_columns(names) if version < 2 else table

    def now(self):
        return TableSpec("things", Row, key=("id",), version=2, upgrade=self.upgrade)

    @staticmethod
    def write(folder, metadata, **columns):
        schema = pa.Table.from_pydict({name: [value] for name, value in columns.items()})
        (folder / SPEC.folder).mkdir()
        path = folder / SPEC.folder / "part-s00000000-r00000.parquet"
        pq.write_table(schema.replace_schema_metadata(metadata), path)
        return path

    @pytest.mark.parametrize("version", [None, "1"])
    def test_an_older_table_is_read_with_names_of_now_and_defaults(self, tmp_path, version):
        metadata = {"diffdpo.table": "things", "diffdpo.version": version} if version else None
        self.write(tmp_path, metadata, id="a", amount=3)
        assert tables.read_rows(tmp_path, self.now()) == [row("a", 3)]
        tables.append(tmp_path, self.now(), [replace(row("b", 4), note="new")])
        tables.compact(tmp_path, self.now())
        (path,) = (tmp_path / SPEC.folder).iterdir()
        assert pq.read_schema(path).metadata[b"diffdpo.version"] == b"2"
        assert tables.read_rows(tmp_path, self.now()) == [row("a", 3), replace(row("b", 4), note="new")]

    def test_a_newer_table_is_refused_with_file_version_and_remedy(self, tmp_path):
        path = self.write(tmp_path, {"diffdpo.table": "things", "diffdpo.version": "3"}, id="a", value=3)
        with pytest.raises(DataError) as caught:
            tables.read_rows(tmp_path, self.now())
        assert str(caught.value) == (
            f"{path}: the table of things has version 3 and this diffdpo reads up to 2; update diffdpo"
        )

    def test_another_table_is_refused(self, tmp_path):
        path = self.write(tmp_path, {"diffdpo.table": "scores", "diffdpo.version": "1"}, id="a", value=3)
        with pytest.raises(
            DataError, match=r"is part of a table of scores, not of things; move it"
        ) as caught:
            tables.read_rows(tmp_path, SPEC)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(
        ("columns", "says"),
        [
            (
                {"other": 1},
                r"not a table of this kind \(no column 'id'\); move it away, or name another folder",
            ),
            ({"id": "a", "value": "three"}, "column 'value' holds string, it should be int64"),
            ({"id": None, "value": 1}, "column 'id' has rows without a value"),
        ],
    )
    def test_a_foreign_table_is_refused_in_one_line(self, tmp_path, columns, says):
        self.write(tmp_path, None, **columns)
        with pytest.raises(DataError, match=says) as caught:
            tables.read_rows(tmp_path, SPEC)
        assert "\n" not in str(caught.value)

    def test_pairs_of_version_0_kept_margins_and_spans_as_json(self, tmp_path):
        values = {"prompt_id": "p", "samples": "../s", "winner": "w", "loser": "l", "group": "g"}
        old_part(
            tmp_path, "part-00000-000000.parquet",
            [{**values, "margins": '{"b": 1.5, "a": -2.0}', "spans": "[[0, 1.5]]", "soft_label": 0.75}], PAIRS,
        )  # fmt: skip
        assert tables.read_rows(tmp_path, PAIRS) == [
            PairRow(**values, margins={"b": 1.5, "a": -2.0}, spans=((0.0, 1.5),), soft_label=0.75)
        ]

    def test_windows_of_version_0_named_their_starts_without_the_unit(self, tmp_path):
        key = {"sha256": "s", "scorer": "x", "fingerprint": "f", "axis": "a", "window": "5/5"}
        old_part(tmp_path, "part-00000-000000.parquet", [{**key, "starts": [0.0], "values": [1.0]}], WINDOWS)
        assert tables.read_rows(tmp_path, WINDOWS) == [WindowRow(**key, starts_s=(0.0,), values=(1.0,))]

    def test_pairs_that_others_wrote_need_four_columns(self, tmp_path):
        names = {"prompt_id": "p", "samples": "../s", "winner": "w", "loser": "l"}
        old_part(tmp_path, "data.parquet", [names], PAIRS)
        (pair,) = tables.read_rows(tmp_path, PAIRS)
        assert pair == PairRow(**names)
        assert (pair.soft_label, pair.axis, pair.spans) == (1.0, "", ())


def test_mined_pairs_become_rows(tmp_path):
    values = {"prompt_id": "p", "group": "g", "winner": "w", "loser": "l", "rule": "r", "soft_label": 0.75}
    first = {"margins": {"b": 1.5, "a": -2.0}, "axis": "b", "spans": ((0.0, 1.5), (2.0, 3.0))}
    mined = [Pair(**values, **first), Pair(**values, margins={})]
    tables.replace(tmp_path, PAIRS, pair_columns(mined, ["../s", "../t"]))
    assert tables.read_rows(tmp_path, PAIRS) == [
        PairRow(**values, **first, samples="../s"),
        PairRow(**values, samples="../t"),
    ]
    tables.replace(tmp_path, PAIRS, pair_columns([], []))
    assert tables.read_rows(tmp_path, PAIRS) == []


def test_a_reader_meets_a_table_that_is_compacted_meanwhile(tmp_path):
    """Parts that vanish between listing and reading are listed again."""
    for value in range(3):
        tables.append(tmp_path, SPEC, [row("a", value)])
    stale = tables.list_parts(tmp_path / SPEC.folder)
    tables.compact(tmp_path, SPEC)
    with pytest.raises(FileNotFoundError):
        tables._read(stale, SPEC, SPEC.columns)
    assert tables.read_rows(tmp_path, SPEC) == [row("a", 2)]


def test_parts_lie_where_the_stage_wrote(tmp_path):
    tables.append(
        tmp_path / "out", SCORES, [ScoreRow(sha256="s", scorer="x", fingerprint="f", axis="a", value=1)]
    )
    (path,) = Path(tmp_path / "out").rglob("*.parquet/*.parquet")
    assert path.parent.name == "scores.parquet"
