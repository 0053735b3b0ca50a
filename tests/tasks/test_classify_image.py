"""The task of pictures: pixels, a loss that leaves padding out, and the same answer for a file and for its pixels."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasllm import picture_task
from kerasllm.data.pictures import odd_pictures, png_of
from kerasllm.data.settings import BatchingSettings
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.label_task import ClassificationSettings
from kerasllm.models.settings import (
    ConvNetSettings,
    ConvolutionLayerSettings,
    MultilayerPerceptronSettings,
    ResNetSettings,
    VisionTransformerSettings,
    WhiteningLayerSettings,
)
from kerasllm.picture_task import PictureSettings
from kerasllm.settings import Settings
from kerasllm.tasks.classify_image import ClassifyImage

LABELS = ("cat", "dog", "owl")
PIXELS = np.uint8([[0, 51], [255, 102]])


def build(model, kind="one_label", labels=LABELS, baseline=False, **picture):
    recipe = SimpleNamespace(
        model=model,
        picture=PictureSettings(**{"height": 2, "width": 2, "channels": 1, **picture}),
        classification=ClassificationSettings(kind=kind, baseline=baseline),
        batching=BatchingSettings(global_batch_size=2),
        training=SimpleNamespace(objective=SimpleNamespace(name="supervised")),
        place=lambda *keys: ".".join(keys),
    )
    task = ClassifyImage(recipe, Vocabulary(None, labels))
    task.build_model()
    return task


@pytest.fixture
def task():
    """Softmax regression, whose logits are the first three pixels, scaled to 0 to 4."""
    task = build(MultilayerPerceptronSettings(num_layers=0), mean=(0.0,), stddev=(0.25,))
    task.model.set_weights([np.eye(4, 3), np.zeros(3)])
    return task


def test_features_are_the_pixels_and_the_class_counted_from_1(task):
    content = png_of(PIXELS)
    features = task.encode({"image": tf.constant([content, content]), "label": tf.constant(["owl", "cat"])})
    assert features["image"].to_list() == [[0, 51, 255, 102]] * 2
    assert features["image"].dtype == tf.uint8
    assert features["labels"].to_list() == [[3], [1]]
    assert features["present"].to_list() == [[1], [1]]


def test_the_model_sees_scaled_pixels_and_the_answer_is_that_of_the_file(task):
    logits = task.forward(task.model, {"image": PIXELS.reshape(1, 4)}, training=False)
    np.testing.assert_allclose(logits, [[[0.0, 0.8, 4.0]]], atol=1e-6)
    answer = task.answer(tf.constant([png_of(PIXELS)]))
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(logits)[:, 0], atol=1e-6)
    assert answer["label"].numpy().tolist() == [b"owl"]
    assert answer["labels"].numpy().tolist() == [[b"cat", b"dog", b"owl"]]


def test_loss_is_cross_entropy_without_padding(task):
    pixels = np.stack([PIXELS.ravel(), np.zeros(4, np.uint8)])
    batch = {"image": pixels, "labels": tf.constant([[2], [0]]), "present": tf.constant([[1], [0]])}
    losses, weights = task.loss(task.forward(task.model, batch, training=True), batch, label_smoothing=0.0)
    assert float(losses[0, 0]) == pytest.approx(np.log(np.exp([0, 0.8, 4]).sum()) - 0.8, rel=1e-5)
    np.testing.assert_array_equal(weights, [[1], [0]])


@pytest.mark.parametrize(
    "model",
    [
        MultilayerPerceptronSettings(),
        ConvNetSettings(),
        ResNetSettings(blocks=(1, 1), filters=(16, 32)),
        VisionTransformerSettings(num_layers=1, patch_size=2),
        ResNetSettings(blocks=(1,), filters=(16,), stem="large", order="pre", normalization="group"),
    ],
    ids=lambda settings: f"{settings.name}-{getattr(settings, 'order', '')}",
)
def test_pictures_of_all_kinds_are_answered_as_in_evaluation(model):
    task = build(model, height=8, width=8, channels=3)
    contents = tf.constant(odd_pictures())
    answers = task.answer(contents)
    features = task.encode({"image": contents, "label": tf.fill([len(contents)], "cat")})
    logits = task.forward(task.model, {"image": features["image"].to_tensor()}, training=False)
    np.testing.assert_array_equal(answers["probabilities"], tf.nn.softmax(logits)[:, 0])
    assert len({tuple(row) for row in answers["probabilities"].numpy().round(6).tolist()}) > 5


def test_a_layer_that_whitens_learns_from_the_training_pictures():
    layers = (WhiteningLayerSettings(name="whitening"), ConvolutionLayerSettings(filters=4))
    task = build(ConvNetSettings(layers=layers), height=4, width=4, channels=1)
    pixels = np.random.default_rng(0).integers(0, 256, [50, 4, 4, 1]).astype("uint8")
    task.begin(SimpleNamespace(features={"image": SimpleNamespace(values=pixels.ravel())}))
    moments = np.asarray(task.model.parts[0](task.picture.seen(pixels)))[:, :3, :3]
    assert moments.min() == 0.0  # relu
    np.testing.assert_allclose(np.square(moments).mean(axis=(0, 1, 2)).reshape(2, 4).sum(axis=0), 1.0, atol=0.02)


def test_whitening_looks_at_pictures_of_the_whole_split(monkeypatch):
    """Files lie label by label, so the first ones are all alike."""
    monkeypatch.setattr(picture_task, "MOST_WHITENED", 10 * 16)
    task = build(ConvNetSettings(layers=(WhiteningLayerSettings(name="whitening"),)), height=4, width=4, channels=1)
    pixels = np.full([50, 4, 4, 1], 255, np.uint8)
    pixels[5:] = np.random.default_rng(0).integers(0, 256, [45, 4, 4, 1])
    looked_at = []
    monkeypatch.setattr(task.model.parts[0], "learn", looked_at.append)
    task.begin(SimpleNamespace(features={"image": SimpleNamespace(values=pixels.ravel())}))
    np.testing.assert_array_equal(looked_at[0], task.picture.seen(pixels[::5]))


def test_several_labels_and_a_number():
    several = build(MultilayerPerceptronSettings(), "several_labels")
    content = tf.constant([png_of(PIXELS)] * 2)
    features = several.encode({"image": content, "label": tf.constant(["owl, cat", "dog"])})
    assert features["labels"].to_list() == [[3, 1], [2]]
    assert several.answer(content)["probabilities"].shape == (2, 3)
    number = build(MultilayerPerceptronSettings(), "number", ())
    assert number.encode({"image": content, "label": tf.constant(["1.5", "-2"])})["number"].to_list() == [[1.5], [-2.0]]
    assert number.answer(content)["number"].shape == (2,)


def test_the_vector_before_the_head_is_an_endpoint():
    task = build(MultilayerPerceptronSettings(hidden_dim=5))
    (embed,) = task.further_endpoints().values()
    vectors = embed(tf.constant([png_of(PIXELS), png_of(PIXELS[::-1])]))["vector"]
    assert vectors.shape == (2, 5)
    logits = task.forward(task.model, {"image": np.stack([PIXELS, PIXELS[::-1]]).reshape(2, 4)}, training=False)
    np.testing.assert_allclose(task.model.output_layer(vectors), logits[:, 0], atol=1e-6)


def test_a_batch_of_pictures_is_counted_in_pictures():
    recipe = SimpleNamespace(
        picture=PictureSettings(),
        classification=ClassificationSettings(),
        batching=BatchingSettings(tokens_per_batch=512),
        training=SimpleNamespace(objective=SimpleNamespace(name="supervised")),
        place=lambda *keys: ".".join(keys),
    )
    with pytest.raises(UserError, match=r"^batching.global_batch_size: is missing; pictures have no tokens"):
        ClassifyImage(recipe, Vocabulary(None, LABELS))


def test_words_are_not_counted_in_pictures():
    with pytest.raises(UserError, match=r"^classification.baseline: counts words, and a picture has none"):
        build(MultilayerPerceptronSettings(), baseline=True)


def test_the_likeliest_five_are_measured_where_there_are_more():
    task = build(MultilayerPerceptronSettings(), labels=tuple("abcdef"))
    shares = [0.3, 0.2, 0.2, 0.15, 0.1, 0.05]
    metrics = task.metrics([{"label": "a", "probabilities": shares}] * 2, ["e", "f"])
    assert (metrics["accuracy"], metrics["top_5_accuracy"]) == (0, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.1, 0.2)}, "mean: must have 1 or 3 numbers, found 2"),
        ({"stddev": (0.0,)}, "stddev: must be greater"),
        ({"answer_views": 6, "width": 1}, "answer_views: a picture of one pixel's height or width cannot be moved"),
    ],
)
def test_settings_of_pictures_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        PictureSettings(**settings)
    assert issubclass(PictureSettings, Settings)


def test_a_file_is_read_for_a_person(task, tmp_path):
    path = tmp_path / "a.bmp"
    Image.fromarray(PIXELS).save(path)
    content = task.read_input(str(path))
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(content)).convert("L")), PIXELS)
    with pytest.raises(UserError, match=r"none.png: cannot be read"):
        task.read_input(str(tmp_path / "none.png"))


def test_a_mixed_example_has_the_loss_of_both_labels_by_their_share(task):
    pixels = np.stack([PIXELS.ravel()] * 2)
    batch = {"image": pixels, "labels": tf.constant([[2], [2]]), "present": tf.constant([[1], [1]])}
    logits = task.forward(task.model, batch, training=True)
    plain = [task.loss(logits, {**batch, "labels": tf.constant([[n], [n]])}, 0.1)[0][0, 0] for n in (2, 3)]
    mixed = {**batch, "other_labels": tf.constant([[3], [3]]), "share": tf.constant([[0.3], [1.0]])}
    losses, _ = task.loss(logits, mixed, 0.1)
    np.testing.assert_allclose(losses[:, 0], [0.3 * plain[0] + 0.7 * plain[1], plain[0]], rtol=1e-5)


def test_mirrored_answers_are_the_same_for_a_picture_and_its_mirror_image():
    task = build(MultilayerPerceptronSettings(num_layers=0), answer_views=2)
    task.model.set_weights([np.eye(4, 3), np.zeros(3)])
    batch = {"image": PIXELS.reshape(1, 4)}
    mirrored = {"image": PIXELS[:, ::-1].reshape(1, 4)}
    np.testing.assert_allclose(*(task.forward(task.model, each, False) for each in (batch, mirrored)), atol=1e-6)
    in_training = [task.forward(task.model, each, True) for each in (batch, mirrored)]
    assert not np.allclose(*in_training, atol=1e-3)


def test_six_views_are_a_picture_and_what_it_is_when_moved_and_mirrored():
    task = build(
        MultilayerPerceptronSettings(num_layers=0), answer_views=6, height=3, width=3, mean=(0.0,), stddev=(1.0,)
    )
    task.model.set_weights([np.eye(9, 3), np.zeros(3)])  # the logits are the first row
    picture = np.uint8([[0, 51, 255], [102, 204, 0], [153, 0, 51]])
    around = np.pad(picture / 255, 1, "reflect")
    first_rows = [0.5 * around[1, 1:4], 0.25 * around[2, 2:5], 0.25 * around[0, 0:3]]
    expected = sum(0.5 * (row + row[::-1]) for row in first_rows)
    batch = {"image": picture.reshape(1, 9)}
    np.testing.assert_allclose(task.forward(task.model, batch, False)[0, 0], expected, atol=1e-6)
