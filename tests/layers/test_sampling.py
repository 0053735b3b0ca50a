"""Samples of a normal distribution, and the closed form of their divergence."""

import numpy as np
import tensorflow as tf

from kerasllm.layers.sampling import NormalSample, divergence_from_normal

DRAW = np.random.default_rng(0)


def test_the_divergence_is_that_of_the_integral():
    mean, log_variance = np.float32([[0.7], [-1.0]]), np.float32([[-0.5], [0.3]])
    x = np.linspace(-15, 15, 200_001)
    for row, found in enumerate(divergence_from_normal(mean, log_variance)):
        m, variance = mean[row, 0], np.exp(log_variance[row, 0])
        q = np.exp(-((x - m) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        log_ratio = -((x - m) ** 2) / (2 * variance) - 0.5 * np.log(variance) + x**2 / 2
        np.testing.assert_allclose(found, np.sum(q * log_ratio) * (x[1] - x[0]), rtol=1e-4)
    both = divergence_from_normal(mean.T, log_variance.T)
    np.testing.assert_allclose(both, [np.sum(divergence_from_normal(mean, log_variance))], rtol=1e-6)


def test_nothing_diverges_from_itself():
    np.testing.assert_array_equal(divergence_from_normal(tf.zeros([2, 3]), tf.zeros([2, 3])), [0, 0])


def test_samples_have_mean_and_deviation_and_repeat_from_their_seed():
    mean, log_variance = tf.fill([20_000, 2], 3.0), tf.fill([20_000, 2], 2 * np.log(0.5).astype("float32"))
    layer, again = NormalSample(seed=1), NormalSample(seed=1)
    drawn = layer(mean, log_variance, training=True).numpy()
    np.testing.assert_allclose(drawn.mean(axis=0), 3, atol=0.02)
    np.testing.assert_allclose(drawn.std(axis=0), 0.5, atol=0.02)
    np.testing.assert_array_equal(again(mean, log_variance, training=True), drawn)
    assert not np.array_equal(layer(mean, log_variance, training=True), drawn)
    np.testing.assert_array_equal(layer(mean, log_variance), mean)


def test_gradients_flow_through_a_sample():
    mean, log_variance = tf.constant([[1.0, 2.0]]), tf.constant([[0.2, -0.4]])
    layer = NormalSample(seed=3)
    with tf.GradientTape() as tape:
        tape.watch([mean, log_variance])
        sample = layer(mean, log_variance, training=True)
    to_mean, to_variance = tape.gradient(sample, [mean, log_variance])
    np.testing.assert_array_equal(to_mean, [[1, 1]])
    np.testing.assert_allclose(to_variance, 0.5 * (sample - mean), rtol=1e-5)
