"""The measures of a split, with a task whose losses are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.runs.evaluation import Evaluator, LossSum
from kerasllm.task import Task


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


class NumberTask(Task):
    """Nothing is measured by answers; how many numbers are even is summed in the pass of the loss."""

    inputs = {"text": "text"}
    reference = None
    metric_names = ("even",)

    def __init__(self):
        self.tokenizer = None

    def forward(self, model, batch, training):
        return tf.cast(batch["ids"], tf.float32)

    def loss(self, logits, batch, label_smoothing):
        return logits, tf.cast(batch["ids"] != 0, tf.float32)

    def sums(self, logits, batch):
        is_number = tf.cast(batch["ids"] != 0, tf.float32)
        return {"numbers": tf.reduce_sum(is_number), "odd": tf.reduce_sum(is_number * (logits % 2))}

    def metrics_of_sums(self, sums):
        return {"even": 1 - sums["odd"] / sums["numbers"]}

    def answer(self, texts):
        return {"text": tf.strings.upper(texts)}

    def metrics(self, answers, references):
        assert references == []
        return {}


def test_a_task_without_references_is_measured_by_its_sums():
    batches = [np.int32([[5, 0, 0]]), np.int32([[1, 2, 4]])]
    stream = SimpleNamespace(
        feature_types={"ids": "int32"}, batches=lambda epoch: range(2), parts=lambda row: [{"ids": batches[row]}]
    )
    examples = SimpleNamespace(texts={"text": ["a", "b"]})
    metrics, rows = Evaluator(NumberTask(), None, examples, stream)("evaluate")
    assert metrics == {"even": 0.5, "loss": 3.0, "tokens": 4}
    assert rows == [{"text": "a", "prediction": "A"}, {"text": "b", "prediction": "B"}]
