"""The page of the tables is that of the code, and every column is explained."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from diffdpo.data.schema import column_types
from tools.config_reference import field_docstrings
from tools.table_reference import TABLES

ROOT = Path(__file__).parents[3]


def test_the_page_is_fresh():
    command = [sys.executable, "tools/table_reference.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("spec", [spec for spec, _ in TABLES], ids=lambda spec: spec.name)
def test_every_column_is_explained_and_licenses_are_spelled_in_one_way(spec):
    docs = field_docstrings(spec.row)
    assert [field.name for field in fields(spec.row) if not docs.get(field.name)] == []
    assert set(spec.key) <= set(spec.columns)
    assert not [name for name in column_types(spec.row) if "licence" in name]
