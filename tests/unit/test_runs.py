"""Files that are complete or absent."""

import json

import pytest

from diffdpo.errors import DataError
from diffdpo.runs import MANIFEST, Metrics, atomic_write, publish, read_json
from diffdpo.text_files import read_jsonl


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_write(path, "old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_published_folder_appears_whole_or_not_at_all(tmp_path):
    def half(staging):
        (staging / "weights").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        publish(tmp_path / "step-1", half, {})
    assert not (tmp_path / "step-1").exists()

    publish(tmp_path / "step-1", lambda staging: (staging / "weights").write_text("whole"), {"step": 1})
    assert (tmp_path / "step-1" / "weights").read_text() == "whole"
    assert json.loads((tmp_path / "step-1" / MANIFEST).read_text()) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_metrics_are_cut_back_to_where_a_run_resumes(tmp_path):
    first = Metrics(tmp_path, keep_until=0)
    for step in (1, 2, 3):
        first.write({"step": step})
    with first.path.open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    Metrics(tmp_path, keep_until=2).write({"step": 3, "again": True})
    rows = [row for _, row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert rows == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_json_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
