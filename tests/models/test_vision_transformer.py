"""A picture as a sequence of patches: how it is cut, and what its places are good for."""

import numpy as np
import pytest

from kerasllm.models.vision_transformer import VisionTransformer

PICTURES = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    return VisionTransformer(4, 6, 3, 5, patch_size=2, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16)


def test_patches_stand_row_by_row(model):
    patches = model.cut(PICTURES).numpy()
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[1, 4].reshape(2, 2, 3), PICTURES[1, 2:4, 2:4])


def test_answers_do_not_depend_on_the_batch(model):
    np.testing.assert_allclose(model(PICTURES[1:])[0], model(PICTURES)[1], atol=1e-5)
    assert model.features(PICTURES).shape == (2, 2, 3, 8)


def test_where_a_patch_stands_counts(model):
    exchanged = PICTURES.copy()
    exchanged[:, :2], exchanged[:, 2:] = PICTURES[:, 2:], PICTURES[:, :2]
    assert not np.allclose(model(exchanged), model(PICTURES), atol=1e-4)


def test_a_patch_that_does_not_divide_the_picture():
    with pytest.raises(ValueError, match="patch_size 4 does not divide pictures of 4 x 6"):
        VisionTransformer(4, 6, 3, 5, patch_size=4)
