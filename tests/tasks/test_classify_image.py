"""The task of images: features, a loss that leaves padding out, and an answer for whatever text."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.vocabulary import Vocabulary
from kerasllm.models.settings import MultilayerPerceptronSettings
from kerasllm.tasks.classify_image import ClassifyImage


@pytest.fixture
def task():
    """Softmax regression of three numbers, whose class is the greatest of them."""
    sizes = MultilayerPerceptronSettings(num_inputs=3, num_classes=3, greatest_input=1.0, num_layers=0)
    task = ClassifyImage(SimpleNamespace(model=sizes), Vocabulary())
    task.build_model().set_weights([np.eye(3), np.zeros(3)])
    return task


def test_features_are_the_numbers_and_the_class_counted_from_1(task):
    texts = {"image": tf.constant(["0 16 3", "7 8 9"]), "label": tf.constant(["0", "9"])}
    features = task.encode(texts)
    assert features["image"].to_list() == [[0, 16, 3], [7, 8, 9]]
    assert features["labels"].to_list() == [[1], [10]]
    assert {rows.dtype for rows in features.values()} == {tf.int32}


def test_loss_is_cross_entropy_without_padding(task):
    batch = {"image": tf.constant([[1, 2, 0], [0, 0, 0]]), "labels": tf.constant([[2], [0]])}
    losses, weights = task.loss(task.forward(task.model, batch, training=True), batch, label_smoothing=0.0)
    assert losses.shape == (2, 1)
    assert float(losses[0, 0]) == pytest.approx(np.log(np.exp([1, 2, 0]).sum()) - 2, rel=1e-5)
    np.testing.assert_array_equal(weights, [[1], [0]])


def test_any_text_is_answered(task):
    answers = task.answer(tf.constant(["1 5 2", "7", "0 0 3 9 9", "", "two ½ -3 99999999999 4", "日本"]))
    assert [text.decode() for text in answers["text"].numpy()] == ["1", "0", "2", "0", "0", "0"]
    expected = 5 - np.log(np.exp([1, 5, 2]).sum())
    assert float(answers["score"][0]) == pytest.approx(expected, rel=1e-5)


def test_accuracy(task):
    assert task.metrics([{"text": text} for text in "1233"], ["1", "2", "2", "3"]) == {"accuracy": 0.75}
