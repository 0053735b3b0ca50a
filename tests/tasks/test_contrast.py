"""Learning without labels: the loss by its formula, two views that follow from the row alone, vectors as answers."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.pictures import odd_pictures, png_of
from kerasllm.data.settings import BatchingSettings
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.models.settings import ResNetSettings
from kerasllm.picture_task import PictureSettings
from kerasllm.tasks.contrast import Contrast, ContrastSettings

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
PRESENT = np.ones((5, 1), np.int32)


def build(objective="supervised", views=None):
    options = {} if views is None else {"views": views}
    recipe = SimpleNamespace(
        model=ResNetSettings(blocks=(1,), filters=(16,)),
        picture=PictureSettings(height=8, width=8),
        contrast=ContrastSettings(projection_dim=4, temperature=0.5, **options),
        batching=BatchingSettings(global_batch_size=2),
        training=SimpleNamespace(objective=SimpleNamespace(name=objective)),
        place=lambda *keys: ".".join(map(str, keys)),
    )
    return Contrast(recipe, Vocabulary())


@pytest.fixture(scope="module")
def task():
    task = build()
    task.build_model()
    return task


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


VIEWS = unit(DRAW.normal(size=(2, 5, 4))).astype("float32")


def losses_by_hand(views, temperature):
    """Each picture's, one view after the other."""
    flat = views.reshape(-1, views.shape[-1])
    count, losses = views.shape[1], []
    for i in range(len(flat)):
        alike = [np.exp(flat[i] @ flat[j] / temperature) for j in range(len(flat)) if j != i]
        losses.append(-np.log(np.exp(flat[i] @ flat[(i + count) % (2 * count)] / temperature) / np.sum(alike)))
    return np.mean(np.reshape(losses, (2, count)), axis=0)


def test_the_loss_is_that_of_the_paper(task):
    losses, weights = task.loss(tf.constant(VIEWS), {"present": PRESENT}, 0.0)
    np.testing.assert_allclose(losses[:, 0], losses_by_hand(VIEWS, 0.5), rtol=1e-5)
    np.testing.assert_array_equal(weights, PRESENT)


def test_padding_is_like_nothing(task):
    present = np.int32([[1], [1], [1], [0], [0]])
    losses, weights = task.loss(tf.constant(VIEWS), {"present": present}, 0.0)
    np.testing.assert_allclose(losses[:3, 0], losses_by_hand(VIEWS[:, :3], 0.5), rtol=1e-5)
    np.testing.assert_array_equal(weights, present)
    sums = task.sums(tf.constant(VIEWS), {"present": present})
    assert float(sums["pictures"]) == 3


def test_a_view_is_found_where_it_is_the_most_alike(task):
    same = np.stack([VIEWS[0], VIEWS[0]])
    assert task.metrics_of_sums(
        {n: float(v) for n, v in task.sums(tf.constant(same), {"present": PRESENT}).items()}
    ) == {"found": 1.0}
    other = np.stack([VIEWS[0], np.roll(VIEWS[0], 1, axis=0)])
    assert float(task.sums(tf.constant(other), {"present": PRESENT})["found"]) == 0


def test_views_follow_from_seed_epoch_and_row_alone(task):
    corruption = task.corruption()
    batch = {"image": PIXELS.reshape(5, -1), "present": PRESENT}
    whole = corruption(batch, np.arange(5), 1, 2)
    assert set(whole) == {"image", "other_image", "present"}
    assert corruption.added == {"other_image": "uint8"}
    part = corruption({name: each[[3, 1]] for name, each in batch.items()}, np.array([3, 1]), 1, 2)
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][[3, 1]])
    assert not np.array_equal(whole["image"], whole["other_image"])
    assert not np.array_equal(corruption(batch, np.arange(5), 1, 3)["image"], whole["image"])
    np.testing.assert_array_equal(batch["image"], PIXELS.reshape(5, -1))


def test_projections_have_length_1_and_answers_are_what_lies_before(task):
    batch = {"image": PIXELS.reshape(5, -1), "other_image": PIXELS[::-1].reshape(5, -1)}
    views = task.forward(task.model, batch, training=False).numpy()
    assert views.shape == (2, 5, 4)
    np.testing.assert_allclose(np.linalg.norm(views, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(views[1], views[0, ::-1], atol=1e-5)
    vectors = task.answer(tf.constant([png_of(picture) for picture in PIXELS]))["vector"]
    np.testing.assert_allclose(vectors, task.model.embed(task.picture.seen(PIXELS)), atol=1e-5)
    assert task.answer(tf.constant(odd_pictures()))["vector"].shape == (len(odd_pictures()), 16)


def test_what_does_not_fit():
    with pytest.raises(UserError, match=r"^training.objective: r_drop compares probabilities of labels"):
        build("r_drop")
    with pytest.raises(UserError, match=r"^contrast.views.0: shift: 9 pixels are not less than the 8"):
        build(views=({"name": "shift", "pixels": 9},)).corruption()
