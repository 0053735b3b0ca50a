"""The autoencoder: shapes on both ways, and what is drawn in training alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.environment import compute_precision
from kerasllm.models.vae import Vae

PICTURES = np.random.default_rng(0).normal(size=(3, 8, 12, 1)).astype("float32")


@pytest.fixture(scope="module")
def model():
    return Vae(8, 12, 1, filters=(4, 6), hidden_dim=10, latent_dim=2)


def test_there_and_back(model):
    made, mean, log_variance = model(PICTURES)
    assert made.shape == PICTURES.shape
    assert mean.shape == log_variance.shape == (3, 2)
    np.testing.assert_allclose(model.decode(mean), made, atol=1e-6)
    np.testing.assert_allclose(model(PICTURES[1:2])[0][0], made[1], atol=1e-5)


def test_training_draws(model):
    first, second = (model(PICTURES, training=True)[0].numpy() for _ in range(2))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(model(PICTURES)[0], model(PICTURES)[0])


def test_pictures_that_cannot_be_halved_so_often():
    with pytest.raises(ValueError, match="3 filters halve pictures of 8 x 12 too often"):
        Vae(8, 12, 1, filters=(4, 4, 4))


def test_what_is_compared_with_pictures_is_float32_in_any_precision():
    made = {}
    for precision in ("float32", "bfloat16"):
        keras.utils.set_random_seed(1)
        with compute_precision(precision):
            made[precision] = Vae(8, 12, 1, filters=(4, 6), hidden_dim=10, latent_dim=2)(PICTURES)
        assert {each.dtype for each in made[precision]} == {tf.float32}
    for ours, theirs in zip(made["bfloat16"], made["float32"], strict=True):
        assert 0 < np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max()
