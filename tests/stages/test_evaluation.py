"""The measures of a split, with a task whose losses are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.evaluation import LossSum


def test_perplexity_is_over_tokens_and_not_over_batches():
    """Two batches, of 1 and of 3 tokens: the mean of their means would be another number."""
    batches = [np.int32([[5, 0, 0]]), np.int32([[1, 2, 3]])]
    stream = SimpleNamespace(
        feature_types={"ids": "int32"}, batches=lambda epoch: range(2), parts=lambda row: [{"ids": batches[row]}]
    )

    def forward(model, batch, training):
        assert not training
        return tf.cast(batch["ids"], tf.float32)

    def loss(logits, batch, label_smoothing):
        assert label_smoothing == 0.0
        return logits, tf.cast(batch["ids"] != 0, tf.float32)

    total, tokens = LossSum(SimpleNamespace(forward=forward, loss=loss), None, stream)()
    assert (total, tokens) == (11.0, 4.0)
    assert math.exp(total / tokens) == pytest.approx(math.exp(2.75))
