"""The task of pictures that are made again: its loss against closed forms, its measures, its pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.pictures import odd_pictures, png_of
from kerasllm.data.settings import BatchingSettings
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.models.settings import VaeSettings
from kerasllm.picture_task import PictureSettings
from kerasllm.tasks.autoencode import Autoencode, AutoencodingSettings

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 4), dtype=np.uint8)
BATCH = {"image": PIXELS.reshape(2, 16), "present": np.int32([[1], [1]])}


def build(objective="supervised", **autoencoding):
    recipe = SimpleNamespace(
        seed=0,
        model=VaeSettings(filters=(4,), hidden_dim=8, latent_dim=3),
        picture=PictureSettings(height=4, width=4, channels=1),
        autoencoding=AutoencodingSettings(**autoencoding),
        batching=BatchingSettings(global_batch_size=2),
        training=SimpleNamespace(objective=SimpleNamespace(name=objective)),
        place=lambda *keys: ".".join(keys),
    )
    task = Autoencode(recipe, Vocabulary())
    task.build_model()
    return task


def outputs(made):
    mean, log_variance = np.float32([[1, 0, -1], [0, 0, 0]]), np.float32([[0, 1, 0], [0, 0, 0]])
    return tf.constant(made, tf.float32), tf.constant(mean), tf.constant(log_variance)


DIVERGENCES = np.array([0.5 * (1 + 1 + (np.e - 1 - 1)), 0.0])


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_loss_of_coins(beta):
    made = np.random.default_rng(1).normal(size=(2, 4, 4, 1))
    x, p = PIXELS.reshape(2, 16) / 255, 1 / (1 + np.exp(-made.reshape(2, 16)))
    reconstruction = -np.sum(x * np.log(p) + (1 - x) * np.log(1 - p), axis=1)
    losses, weights = build(beta=beta).loss(outputs(made), BATCH, 0.0)
    np.testing.assert_allclose(losses[:, 0], reconstruction + beta * DIVERGENCES, rtol=1e-5)
    np.testing.assert_array_equal(weights, [[1], [1]])


def test_the_loss_of_a_normal_distribution():
    made = np.random.default_rng(1).normal(size=(2, 4, 4, 1))
    x = PIXELS.reshape(2, 16) / 255
    density = np.exp(-((x - made.reshape(2, 16)) ** 2) / (2 * 0.5**2)) / np.sqrt(2 * np.pi * 0.5**2)
    losses, _ = build(likelihood="gaussian", noise=0.5).loss(outputs(made), BATCH, 0.0)
    np.testing.assert_allclose(losses[:, 0], -np.log(density).sum(axis=1) + DIVERGENCES, rtol=1e-5)


def test_measures_are_means_over_pictures_without_padding():
    task, made = build(), np.zeros((2, 4, 4, 1))
    sums = {name: float(value) for name, value in task.sums(outputs(made), BATCH).items()}
    expected = {"reconstruction": 16 * np.log(2), "divergence": DIVERGENCES.mean()}
    assert task.metrics_of_sums(sums) == pytest.approx(expected, rel=1e-5)
    padded = {**BATCH, "present": np.int32([[1], [0]])}
    assert float(task.sums(outputs(made), padded)["divergence"]) == pytest.approx(DIVERGENCES[0], rel=1e-5)


def test_answers_are_the_means_and_the_error_that_is_left():
    task = build()
    contents = [png_of(picture) for picture in PIXELS]
    answer = task.answer(tf.constant(contents))
    made, mean, _ = task.forward(task.model, BATCH, training=False)
    np.testing.assert_allclose(answer["latent"], mean, atol=1e-6)
    error = np.mean((PIXELS / 255 - 1 / (1 + np.exp(-made.numpy()[..., 0]))) ** 2, axis=(1, 2))
    np.testing.assert_allclose(answer["error"], error, rtol=1e-5)
    assert task.answer(tf.constant(odd_pictures()))["latent"].shape == (len(odd_pictures()), 3)


def test_pictures_of_what_was_learnt():
    task = build()
    contents = [png_of(picture) for picture in PIXELS]
    answers = [{"error": 0.0, "latent": row} for row in task.answer(tf.constant(contents))["latent"].numpy().tolist()]
    figures = task.pictures(answers, [], [contents])
    assert set(figures) == {"reconstructions", "samples", "walks"}
    shown = [len([axes for axes in figure.axes if axes.images]) for figure in figures.values()]
    assert shown == [4, 64, 8]
    assert set(task.pictures(answers[:1], [], [contents[:1]])) == {"reconstructions", "samples"}


def test_an_objective_of_labels_is_refused():
    with pytest.raises(UserError, match=r"^training.objective: r_drop compares probabilities of labels"):
        build("r_drop")
