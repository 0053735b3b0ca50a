"""Surfaces: the minima are minima, and the batch of all examples has the gradient of the surface itself."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.models.surface import LANDSCAPES, Surface

each_landscape = pytest.mark.parametrize("name", list(LANDSCAPES))


def gradient_at(height, point):
    """By automatic differentiation, in float64."""
    x, y = (tf.constant(number, tf.float64) for number in point)
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        value = height(x, y)
    return [float(each) for each in tape.gradient(value, [x, y])]


@each_landscape
def test_the_minima_are_the_lowest_points_of_the_window(name):
    landscape = LANDSCAPES[name]
    left, right, bottom, top = landscape.window
    x, y = np.meshgrid(np.linspace(left, right, 201), np.linspace(bottom, top, 201))
    for minimum in landscape.minima:
        np.testing.assert_allclose(gradient_at(landscape.height, minimum), [0, 0], atol=1e-9)
        assert landscape.height(*minimum) <= landscape.height(x, y).min() + 1e-12
    assert left < landscape.start[0] < right
    assert bottom < landscape.start[1] < top
    assert landscape.height(*landscape.start) > landscape.height(*landscape.minima[0])


def test_known_heights():
    """Worked out by hand at (2, 3)."""
    heights = {name: landscape.height(2.0, 3.0) for name, landscape in LANDSCAPES.items()}
    assert heights["valley"] == 0.5 * (4 + 225)
    assert heights["rosenbrock"] == 1 + 100
    assert heights["beale"] == 5.5**2 + 18.25**2 + 54.625**2
    assert heights["saddle"] == 4 - 9 + 20.25


def test_slopes_tilt_the_surface_and_cancel_out():
    """Height at (1, 2) + 0.5 * (0.3 * 1 - 0.1 * 2) and its opposite."""
    model = Surface("valley", noise=0.5)
    model.position.assign([1.0, 2.0])
    slopes = np.int32([[300, -100], [-300, 100]])
    with tf.GradientTape(persistent=True) as tape:
        heights = model(slopes)
        first, mean = heights[0, 0], tf.reduce_mean(heights)
    np.testing.assert_allclose(heights, [[50.55], [50.45]], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(mean, model.position.value), [1.0, 50.0], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(first, model.position.value), [1.15, 49.95], rtol=1e-6)


@each_landscape
def test_it_begins_at_the_start(name):
    np.testing.assert_allclose(Surface(name).position.numpy(), LANDSCAPES[name].start, rtol=1e-6)
