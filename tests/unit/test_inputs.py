"""Digests: equal for equal values, different for different ones, whatever the order of keys and the machine."""

import json
import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diffdpo.inputs import BLOCK, LARGE_FILE, changed_inputs, content_digest, digest, write_inputs

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES, VALUES)
def test_values_have_one_digest_if_and_only_if_json_says_that_they_are_one(one, two):
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (digest(one) == digest(two)) == same


@given(st.dictionaries(st.text(max_size=8), LEAVES, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_count(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert digest({key: value[key] for key in keys}) == digest(value)


@given(st.lists(st.floats(width=32), max_size=6), st.lists(st.floats(width=32), max_size=6))
def test_arrays_are_compared_bit_for_bit(one, two):
    arrays = [np.array(values, np.float32) for values in (one, two)]
    assert (digest(arrays[0]) == digest(arrays[1])) == (arrays[0].tobytes() == arrays[1].tobytes())


def test_arrays_of_another_shape_or_type_are_other_values():
    zeros = [np.zeros((2, 3)), np.zeros((3, 2)), np.zeros(6), np.zeros((2, 3), np.float32)]
    assert len({digest(array) for array in zeros}) == len(zeros)


def test_a_file_is_its_content_and_a_folder_that_of_its_files_by_name(tmp_path):
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    assert content_digest(tmp_path / "a") == content_digest(tmp_path / "b") != content_digest(tmp_path / "c")
    folder = content_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "d")
    assert content_digest(tmp_path) != folder
    (tmp_path / "d").rename(tmp_path / "a")
    os.utime(tmp_path / "a", (0, 0))
    assert content_digest(tmp_path) == folder
    assert content_digest(tmp_path / "nowhere") == ""


def test_a_large_file_is_known_by_blocks_over_its_whole_length(tmp_path):
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(LARGE_FILE + 5)
    empty = content_digest(path)
    for place in (0, LARGE_FILE // 2, LARGE_FILE + 4):
        with path.open("r+b") as file:
            file.seek(max(0, place - BLOCK * 17))
            file.write(
                np.random.default_rng(place).bytes(BLOCK * 34)[: LARGE_FILE + 5 - max(0, place - BLOCK * 17)]
            )
        assert content_digest(path) != empty
        empty = content_digest(path)


def test_inputs_without_a_digest_in_the_folder_count_as_equal(tmp_path):
    write_inputs(tmp_path, {"pairs": "a"})
    assert changed_inputs(tmp_path, {"pairs": "a", "model": "b"}) == []
    assert changed_inputs(tmp_path, {"pairs": "c", "model": "b"}) == ["pairs"]
