"""Maps of what counts, on networks built by hand whose answer is known."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.attribution import grad_cam, occlusion


class ByHand:
    """Class 0 counts the first channel, class 1 twice the second one less the first."""

    weights = tf.constant([[1.0, -1.0], [0.0, 2.0]])  # [F, C]

    def features(self, pictures):
        return pictures

    def logits_of(self, features):
        return tf.reduce_mean(features, axis=[1, 2]) @ self.weights

    def __call__(self, pictures):
        return self.logits_of(pictures)


@pytest.fixture
def picture():
    picture = np.zeros((4, 6, 2), np.float32)
    picture[1, 2, 0], picture[3, 5, 1] = 3.0, 5.0
    return picture


def test_grad_cam_is_the_weighted_sum_of_the_channels(picture):
    maps = grad_cam(ByHand(), tf.constant([picture, picture]), tf.constant([0, 1])).numpy()
    assert maps.shape == (2, 4, 6)
    expected = np.zeros((2, 4, 6))
    expected[0, 1, 2], expected[1, 3, 5] = 3.0 / 24, 2 * 5.0 / 24  # what counts against a class is left out
    np.testing.assert_allclose(maps, expected, atol=1e-6)


def test_occlusion_finds_the_pixel_that_counts(picture):
    for chosen, place in ((0, (1, 2)), (1, (3, 5))):
        drops = occlusion(ByHand(), picture, chosen, size=1, stride=1)
        assert drops.shape == (4, 6)
        assert np.unravel_index(drops.argmax(), drops.shape) == place


def test_occlusion_by_hand(picture):
    """A square of 2 by 2 hides each pixel four times, or less often at the edge."""

    def probability(seen):
        return tf.nn.softmax(ByHand()(seen[np.newaxis]))[0, 0].numpy()

    drops = occlusion(ByHand(), picture, 0, size=2, stride=1)
    found = []
    for top in (-1, 0):
        for left in (-1, 0):
            hidden = picture.copy()
            hidden[max(0, top) : top + 2, max(0, left) : left + 2] = picture.mean(axis=(0, 1))
            found.append(probability(picture) - probability(hidden))
    assert drops[0, 0] == pytest.approx(np.mean(found), abs=1e-6)
