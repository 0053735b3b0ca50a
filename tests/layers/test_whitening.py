"""What whitening promises of patches, on pictures whose pixels depend on each other."""

import numpy as np

from kerasllm.layers.whitening import EPSILON, Whitening

DRAW = np.random.default_rng(0)
SHARED = DRAW.normal(size=(300, 1, 1, 1))
PICTURES = (SHARED + DRAW.normal(size=(300, 6, 6, 2)) * [0.5, 0.1]).astype("float32")


def learnt(size, padding="same"):
    layer = Whitening(size, padding)
    layer.build(PICTURES.shape)
    layer.learn(PICTURES)
    return layer


def test_patches_vary_by_one_in_every_direction_and_independently():
    for size in (2, 3):
        layer, inside = learnt(size), slice(1, 7 - size)
        y = np.asarray(layer(PICTURES))[:, inside, inside]  # no patch of these meets the border
        first, opposite = np.split(y.reshape(-1, y.shape[-1]), 2, axis=1)
        np.testing.assert_allclose(opposite, -first, rtol=0, atol=2e-5)
        moments = first.T @ first / len(first)
        np.testing.assert_allclose(moments, np.eye(2 * size**2), atol=0.1)


def test_the_strongest_direction_comes_first_and_is_scaled_by_its_deviation():
    kernel = learnt(2).kernel.numpy()[..., 0].ravel()
    patches = np.stack([PICTURES[:, i : i + 5, j : j + 5] for i in (0, 1) for j in (0, 1)], axis=3).reshape(-1, 8)
    variance = np.linalg.eigvalsh(patches.T @ patches / len(patches))[-1]
    np.testing.assert_allclose(np.linalg.norm(kernel), 1 / np.sqrt(variance + EPSILON), rtol=1e-3)
    assert (kernel > 0).all() or (kernel < 0).all()  # what all pixels of a picture share


def test_only_the_bias_is_trained():
    layer = learnt(2)
    assert [variable.name for variable in layer.trainable_variables] == ["bias"]
    before = np.asarray(layer(PICTURES))
    layer.bias.assign(np.arange(16))
    np.testing.assert_allclose(layer(PICTURES) - before, np.broadcast_to(np.arange(16.0), before.shape), atol=1e-4)


def test_whole_patches_only_are_what_is_seen_inside_a_margin_of_zeros():
    for size in (2, 3):
        before = (size - 1) // 2
        inside = slice(before, before + 7 - size)
        padded, valid = (np.asarray(learnt(size, padding)(PICTURES)) for padding in ("same", "valid"))
        np.testing.assert_allclose(valid, padded[:, inside, inside], atol=1e-4)
        narrow = np.asarray(learnt(size, "valid")(PICTURES[:, :, : size - 1]))
        assert narrow.shape[1:3] == (6, size - 1)
