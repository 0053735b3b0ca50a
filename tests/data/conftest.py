"""Fixtures that write small prepared splits."""

import numpy as np
import pytest

from kerasllm.data.store import Examples, RaggedArray, RaggedTexts, RaggedWriter


def write_rows(path, rows, dtype="int32"):
    with RaggedWriter(path, dtype) as writer:
        writer.append(np.concatenate([np.asarray(row, dtype) for row in rows]), np.array([len(row) for row in rows]))


@pytest.fixture
def make_examples(tmp_path):
    """make_examples([[2, 3], [4, 1]]) -> two examples whose features `a` and `b` have these lengths.

    Position t of example i holds 1000 * i + t + 1 in `a`, the same plus 100 in `b`.
    """

    def make(lengths):
        features = {}
        for column, name in enumerate("ab"):
            rows = [1000 * i + 100 * column + 1 + np.arange(row[column]) for i, row in enumerate(lengths)]
            write_rows(tmp_path / name, rows)
            features[name] = RaggedArray(tmp_path / name)
        with RaggedWriter(tmp_path / "text", "uint8") as writer:
            writer.append_texts(f"text {i}" for i in range(len(lengths)))
        return Examples(features, {"text": RaggedTexts(tmp_path / "text")})

    return make
