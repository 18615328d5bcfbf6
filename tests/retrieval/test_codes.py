"""The code table: what it takes, what it refuses, and its way to disk and back."""

import numpy as np
import pytest

from retrieval.codes import CodeTable
from retrieval.errors import BundleTorn, InvalidInput


def table() -> CodeTable:
    return CodeTable(np.array([[-1, -1], [0, 3], [-1, -1], [1, 0]]), (2, 4))


def test_items_without_a_code_stand_in_the_table():
    assert len(table()) == 3
    assert table().coded.tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (np.array([[-1, -1], [0, 4]]), "row 1 has codes"),
        (np.array([[-1, -1], [0, -1]]), "row 1 has codes"),
        (np.array([[0, 0], [0, 1]]), "row 0 of a code table is padding"),
        (np.array([[-1, -1, -1]]), "codes have shape"),
        (np.zeros((0, 2)), "codes have shape"),
    ],
)
def test_what_is_no_code_table_is_refused(codes, says):
    with pytest.raises(InvalidInput, match=says):
        CodeTable(codes, (2, 4))


def test_new_rows_stand_behind_and_old_ones_stay():
    more = table().extended(np.array([[1, 1], [-1, -1]]))
    assert more.codes[:4].tolist() == table().codes.tolist()
    assert more.coded.tolist() == [False, True, False, True, True, False]
    with pytest.raises(ValueError, match="read-only"):
        more.codes[1, 0] = 0


def test_it_survives_the_disk(tmp_path):
    table().save(tmp_path / "codes.npz")
    again = CodeTable.load(tmp_path / "codes.npz")
    assert again.codes.tolist() == table().codes.tolist()
    assert again.vocabulary == (2, 4)


@pytest.mark.parametrize("content", [b"", b"no table", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "codes.npz").write_bytes(content)
    with pytest.raises(BundleTorn, match=r"codes\.npz is not a readable code table"):
        CodeTable.load(tmp_path / "codes.npz")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BundleTorn, match=r"codes\.npz"):
        CodeTable.load(tmp_path / "codes.npz")
