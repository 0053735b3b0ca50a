"""The likeliest span, found by trying all."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.layers.spans import IMPOSSIBLE, best_spans


@pytest.mark.parametrize("max_length", [1, 2, 5, 30])
def test_the_best_of_all_spans(max_length):
    generator = np.random.default_rng(max_length)
    values = generator.normal(size=(40, 2, 9)).astype("float32")
    allowed = generator.random((40, 9)) < 0.6
    scores, first, last = (array.numpy() for array in best_spans(tf.constant(values), allowed, max_length))
    for row in range(40):
        spans = {
            (i, j): values[row, 0, i] + values[row, 1, j]
            for i in range(9)
            for j in range(i, min(i + max_length, 9))
            if allowed[row, i] and allowed[row, j]
        }
        best = max(spans, key=spans.get)
        assert (first[row], last[row]) == best
        assert scores[row] == spans[best]


def test_where_nothing_is_allowed_and_where_all_are_alike():
    values = tf.zeros([2, 2, 4])
    scores, first, last = best_spans(values, tf.constant([[False] * 4, [False, True, True, True]]), 3)
    assert scores[0] < IMPOSSIBLE / 2
    assert (int(first[1]), int(last[1]), float(scores[1])) == (1, 1, 0.0)
