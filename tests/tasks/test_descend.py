"""The walk down a surface, through the same objective and trainer as every other task."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.vocabulary import Vocabulary
from kerasllm.models.settings import SurfaceSettings
from kerasllm.tasks.descend import Descend
from kerasllm.training.objectives import Supervised


def new_task(**numbers):
    task = Descend(SimpleNamespace(model=SurfaceSettings(**numbers)), Vocabulary())
    task.build_model()
    return task


def test_features():
    texts = {"slope_x": tf.constant(["-512", "3"]), "slope_y": tf.constant(["87", "0"])}
    features = new_task().encode(texts)
    assert features["slope"].to_list() == [[-512, 87], [3, 0]]
    assert features["sample_weight"].to_list() == [[1], [1]]


def test_gradient_descent_in_a_valley_follows_its_formula():
    """A step of rate r takes x to (1 - r) x and y to (1 - 25 r) y, whatever padding is in the batch."""
    task, objective, optimizer = new_task(noise=1.0), None, keras.optimizers.SGD(0.05)
    objective = Supervised(task)
    batch = {
        "slope": tf.constant([[700, -200], [-700, 200], [0, 0]]),
        "sample_weight": tf.constant([[1], [1], [0]]),
    }
    for _ in range(3):
        with tf.GradientTape() as tape:
            losses, weights = objective(task.model, batch, training=True)
            loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)
        optimizer.apply([tape.gradient(loss, task.model.position.value)], [task.model.position])
    x, y = -2.0 * 0.95**3, 1.0 * (-0.25) ** 3
    assert task.step_figures() == {"x": pytest.approx(x, rel=1e-5), "y": pytest.approx(y, rel=1e-5)}


def test_the_answer_is_where_it_stands():
    task = new_task(landscape="rosenbrock")
    task.model.position.assign([0.5, -2.25])
    answers = task.answer(tf.constant(["a", "b"]))
    assert answers["text"].numpy().tolist() == [b"0.500000 -2.250000"] * 2
    np.testing.assert_allclose(answers["score"], [-(0.25 + 100 * 2.5**2)] * 2, rtol=1e-6)


def test_the_distance_is_to_the_nearest_minimum():
    assert new_task(landscape="rosenbrock").metrics([{"text": "4.0 5.0"}], [""]) == {"distance": 5.0}
    assert new_task(landscape="saddle").metrics([{"text": "3.0 -1.414214"}], [""])["distance"] == pytest.approx(3.0)
    assert np.isnan(new_task().metrics([{"text": "nan nan"}], [""])["distance"])
