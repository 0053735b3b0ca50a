"""Ragged arrays come back as they were written, and damage is noticed."""

import json

import numpy as np
import pytest

from kerasllm.data.store import Prepared, RaggedArray, RaggedTexts, RaggedWriter
from kerasllm.errors import UserError

ROWS = [[5, 6, 7], [], [8], [], [9, 10]]


@pytest.fixture
def path(tmp_path):
    with RaggedWriter(tmp_path / "ids", "int32") as writer:
        for rows in (ROWS[:2], ROWS[2:]):  # in two pieces, as a stream arrives
            writer.append(np.concatenate(rows).astype(np.int32), np.array([len(row) for row in rows]))
    return tmp_path / "ids"


def test_round_trip(path):
    array = RaggedArray(path)
    assert len(array) == 5
    assert [row.tolist() for row in array] == ROWS
    assert array[-1].tolist() == [9, 10]
    assert array.lengths.tolist() == [3, 0, 1, 0, 2]
    assert array.lengths.dtype == np.int32
    assert array.offsets.tolist() == [0, 3, 3, 4, 4, 6]
    with pytest.raises(IndexError):
        array[5]


@pytest.mark.parametrize("num_rows", [1, 2, 5, 100])
def test_chunks_give_the_same_rows(path, num_rows):
    chunks = list(RaggedArray(path).chunks(num_rows))
    assert all(len(chunk) == num_rows for chunk in chunks[:-1])
    assert [row.tolist() for chunk in chunks for row in chunk] == ROWS


def test_texts_round_trip(tmp_path):
    texts = ["Grüße, 世界 🎉", "", "a\nb"]
    with RaggedWriter(tmp_path / "text", "uint8") as writer:
        writer.append_texts(texts[:1])
        writer.append_texts(texts[1:])
    stored = RaggedTexts(tmp_path / "text")
    assert list(stored) == texts
    assert [stored[i] for i in range(3)] == texts


def test_nothing_written_is_an_empty_array(tmp_path):
    with RaggedWriter(tmp_path / "ids", "int32"):
        pass
    array = RaggedArray(tmp_path / "ids")
    assert len(array) == 0
    assert array.values.shape == (0,)
    assert list(array.chunks()) == []


def test_a_failed_block_leaves_nothing_that_opens(tmp_path):
    with (
        pytest.raises(ValueError, match=r"add up to 3, but there are 2 values"),
        RaggedWriter(tmp_path / "ids", "int32") as writer,
    ):
        writer.append(np.arange(2), np.array([3]))
    with pytest.raises(UserError, match=r"ids\.json: cannot be read .*run prepare again"):
        RaggedArray(tmp_path / "ids")


@pytest.mark.parametrize("part", ["values", "offsets"])
def test_truncated_file(path, part):
    file = path.with_name(f"ids.{part}")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"ids\.{part}: has \d+ bytes instead of \d+; .*run prepare again"):
        RaggedArray(path)


@pytest.mark.parametrize("part", ["values", "offsets"])
def test_flipped_bit(path, part):
    file = path.with_name(f"ids.{part}")
    data = bytearray(file.read_bytes())
    data[9] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"ids\.{part}: does not match its checksum"):
        RaggedArray(path)


def test_missing_file(path):
    path.with_name("ids.values").unlink()
    with pytest.raises(UserError, match=r"ids\.values: cannot be read"):
        RaggedArray(path)


def test_prepared_directory_names_its_splits(tmp_path):
    with pytest.raises(UserError, match=r"prepared\.json: cannot be read"):
        Prepared(tmp_path)
    (tmp_path / "prepared.json").write_text(json.dumps({"splits": {"train": 3, "test": 1}}))
    with pytest.raises(UserError, match="split 'validation' was not prepared; there are train, test"):
        Prepared(tmp_path).examples("validation")
