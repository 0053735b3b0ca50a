"""Each change of pictures by hand on one of 4 x 4, and what all of them keep."""

import numpy as np
import pytest
from PIL import Image

from kerasllm.data.augmentation import AugmentedTraining
from kerasllm.data.batching import BatchStream
from kerasllm.data.draws import Draws
from kerasllm.data.padding import pad_batch
from kerasllm.data.picture_augmentation import ColorJitter, CutMix, Cutout, Flip, MixUp, Shift
from kerasllm.data.rand_augment import CHANGES, Grey, RandAugment, ResizedCrop, Rotation, rotated
from kerasllm.data.settings import BatchingSettings
from kerasllm.data.store import Examples

SMALL = {"image": (4, 4, 1)}
WIDE = {"image": (6, 9, 3)}
PICTURE = np.arange(1, 17, dtype=np.uint8).reshape(1, 16)


class Fixed:
    """Draws that are given by hand."""

    def __init__(self, *numbers):
        self.numbers = np.array(numbers)

    def apart(self, number):
        return Fixed(*self.numbers[:, number : number + 1])

    def integers(self, bound, num):
        assert (self.numbers < bound).all()
        return self.numbers

    def chosen(self, rate, num):
        return self.numbers < rate

    def bits(self, num):
        return (self.numbers * 2.0**64).astype(np.uint64)


def changed(augmentation, *numbers, picture=PICTURE):
    return augmentation({"image": picture}, Fixed(numbers))["image"].reshape(4, 4).tolist()


def test_flip():
    rows = PICTURE.reshape(4, 4)
    assert changed(Flip(SMALL), 0.4) == rows[:, ::-1].tolist()
    assert changed(Flip(SMALL), 0.6) == rows.tolist()


def test_shift():
    assert changed(Shift(SMALL, 1), 0, 2) == [[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0], [10, 11, 12, 0]]
    assert changed(Shift(SMALL, 2), 4, 1) == [[0, 9, 10, 11], [0, 13, 14, 15], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert changed(Shift(SMALL, 2), 2, 2) == PICTURE.reshape(4, 4).tolist()
    mirrored = [[6, 5, 6, 7], [2, 1, 2, 3], [6, 5, 6, 7], [10, 9, 10, 11]]
    assert changed(Shift(SMALL, 1, "reflect"), 0, 0) == mirrored


def test_cutout():
    """Around row 2 and column 0: half of it lies outside."""
    assert changed(Cutout(SMALL, 2), 2, 0) == [[1, 2, 3, 4], [0, 6, 7, 8], [0, 10, 11, 12], [13, 14, 15, 16]]


def test_brightness_and_contrast():
    picture = np.uint8([[40, 80] * 8])
    brighter = ColorJitter(SMALL, (0.5, 0.0, 0.0))
    assert changed(brighter, 1.0 - 2**-20, 0.5, 0.5, picture=picture)[0] == [60, 120, 60, 120]
    assert changed(brighter, 0.0, 0.5, 0.5, picture=picture)[0] == [20, 40, 20, 40]
    assert changed(ColorJitter(SMALL, (0.0, 0.5, 0.0)), 0.5, 0.0, 0.5, picture=picture)[0] == [50, 70, 50, 70]


def test_saturation():
    colors = np.uint8([[[200, 100, 50]]])
    found = ColorJitter({"image": (1, 1, 3)}, (0.0, 0.0, 1.0))({"image": colors.reshape(1, 3)}, Fixed((0.5, 0.5, 0.0)))
    grey = 0.2989 * 200 + 0.587 * 100 + 0.114 * 50
    np.testing.assert_allclose(found["image"][0], grey, atol=0.51)


ALL = [
    Flip(WIDE),
    Shift(WIDE, 2),
    Cutout(WIDE, 3),
    ColorJitter(WIDE, (0.4, 0.4, 0.4)),
    Rotation(WIDE, 30.0),
    RandAugment(WIDE, 2, 0.5),
    ResizedCrop(WIDE, 0.3),
    Grey(WIDE, 0.5),
]


def one_changed(name, strength):
    picture = Image.fromarray(PICTURE.reshape(4, 4))
    return np.asarray(CHANGES[name](picture, strength)).tolist()


def test_changes_of_pillow_by_hand():
    rows = PICTURE.reshape(4, 4)
    quarter = 0.25 / 0.45  # of the width: one pixel
    assert one_changed("identity", 1.0) == rows.tolist()
    assert one_changed("translate_x", quarter) == [[*row[1:], 0] for row in rows.tolist()]
    assert one_changed("translate_y", -quarter) == [[0] * 4, *rows[:3].tolist()]
    assert np.asarray(rotated(Image.fromarray(rows), 90)).tolist() == np.rot90(rows).tolist()
    assert one_changed("posterize", 1.0)[3] == [0, 0, 0, 16]
    assert one_changed("solarize", 1.0) == (255 - rows).tolist()
    assert np.min(one_changed("autocontrast", 0.0)) == 0
    assert np.max(one_changed("autocontrast", 0.0)) == 255
    assert one_changed("brightness", 1.0)[0] == [1, 3, 5, 7]  # times 1.9


def test_a_crop_is_a_part_of_the_picture():
    rows = np.kron(np.uint8([[10, 50], [90, 200]]), np.ones((4, 4), np.uint8))
    whole = ResizedCrop({"image": (8, 8, 1)}, 1.0).change_one(Image.fromarray(rows), np.array([0.3, 0.5, 0.9, 0.1]))
    np.testing.assert_array_equal(np.asarray(whole), rows)
    corner = ResizedCrop({"image": (8, 8, 1)}, 0.25).change_one(Image.fromarray(rows), np.array([0.0, 0.5, 1.0, 0.0]))
    inside = np.asarray(corner)[:-1, 1:]  # where it touches the rest, it is interpolated with that
    np.testing.assert_array_equal(inside, np.full((7, 7), 50))


def test_grey_takes_the_colours():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    grey = np.asarray(Grey(WIDE, 0.5).change_one(picture, np.array([0.4])))
    np.testing.assert_array_equal(grey, np.repeat(np.asarray(picture.convert("L"))[..., np.newaxis], 3, axis=2))
    assert Grey(WIDE, 0.5).change_one(picture, np.array([0.6])) is picture


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_change_keeps_size_and_kind(name, mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)).convert(mode)
    for strength in (-1.0, 0.0, 0.3, 1.0):
        changed = CHANGES[name](picture, strength)
        assert (changed.size, changed.mode) == (picture.size, mode)


@pytest.mark.parametrize("augmentation", ALL, ids=lambda each: type(each).__name__)
def test_pictures_change_by_themselves_and_nothing_else_does(augmentation):
    pictures = np.tile(np.random.default_rng(0).integers(1, 255, (1, 6 * 9 * 3), dtype=np.uint8), (200, 1))
    given = pictures.copy()
    found = augmentation({"image": pictures, "labels": pictures}, Draws(np.arange(200), 0))
    assert found["image"].shape == pictures.shape
    assert found["image"].dtype == np.uint8
    assert found["labels"] is pictures
    np.testing.assert_array_equal(pictures, given)
    assert len(np.unique(found["image"], axis=0)) == 2 or len(np.unique(found["image"], axis=0)) > 15
    alone = augmentation({"image": pictures[:2]}, Draws(np.array([150, 7]), 0))["image"]
    np.testing.assert_array_equal(alone, found["image"][[150, 7]])


def test_mixup_and_cutmix_by_hand():
    zeros, hundreds = np.zeros((1, 4, 4, 1), np.uint8), np.full((1, 4, 4, 1), 100, np.uint8)
    mixed, share = MixUp(SMALL, 0.2).mixed(zeros, hundreds, np.array([0.7]), Fixed((0, 0)))
    np.testing.assert_array_equal(mixed, np.full((1, 4, 4, 1), 30))
    assert share == [0.7]
    mixed, share = CutMix(SMALL, 1.0).mixed(zeros, hundreds, np.array([0.75]), Fixed((3, 1)))
    expected = [[0, 0, 0, 0], [0, 0, 0, 0], [100, 100, 0, 0], [100, 100, 0, 0]]  # 2 x 2 around row 3, column 1
    assert mixed[0, :, :, 0].tolist() == expected
    assert share == [0.75]
    mixed, share = CutMix(SMALL, 1.0).mixed(zeros, hundreds, np.array([0.75]), Fixed((0, 0)))
    assert mixed[0, :, :, 0].tolist() == [[100, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert share == [1 - 1 / 16], "of what lies inside"


@pytest.fixture
def mixing():
    """Flips and shifts before a mixture of 30 pictures of 4 x 4 with their labels."""
    draw = np.random.default_rng(0)
    pictures, labels = draw.integers(0, 256, (30, 16), dtype=np.uint8), draw.integers(1, 4, (30, 1))
    examples = make_pictures(pictures, labels)
    return AugmentedTraining((Flip(SMALL), Shift(SMALL, 1), CutMix(SMALL, 1.0)), seed=3, examples=examples)


def make_pictures(pictures, labels):
    """Prepared examples in memory."""
    features = {"image": InMemory(pictures), "labels": InMemory(labels.astype(np.int32))}
    return Examples(features, {})


class InMemory:
    """Rows of equal length, as a `RaggedArray` has them."""

    def __init__(self, rows):
        self.values, self.lengths = rows.ravel(), np.full(len(rows), rows.shape[1], np.int32)
        self.offsets = np.arange(len(rows) + 1) * rows.shape[1]

    def __len__(self):
        return len(self.lengths)


def test_a_mixture_follows_from_seed_epoch_and_row_alone(mixing):
    features = mixing.examples.features
    rows = np.arange(30)
    whole = mixing(pad_batch(features, rows), rows, epoch=2, step=0)
    some = np.array([17, 4])
    part = mixing(pad_batch(features, some), some, epoch=2, step=9)
    assert set(whole) == {"image", "labels", "other_labels", "share"}
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][some])
    assert not np.array_equal(mixing(pad_batch(features, rows), rows, epoch=3, step=0)["image"], whole["image"])
    assert 0.3 < whole["share"].mean() < 0.7
    np.testing.assert_array_equal(whole["labels"], pad_batch(features, rows)["labels"])


def test_what_comes_in_was_changed_as_its_own_row_would_be(mixing):
    features, rows = mixing.examples.features, np.arange(30)
    whole = mixing(pad_batch(features, rows), rows, epoch=0, step=0)
    before = AugmentedTraining(mixing.augmentations[:2], seed=3)(pad_batch(features, rows), rows, epoch=0, step=0)
    others = mixing.augmentations[2].others(Draws(rows, 3, 0, 2), 30)
    first, second = before["image"], before["image"][others]
    assert ((whole["image"] == first) | (whole["image"] == second)).all()
    np.testing.assert_array_equal(whole["other_labels"], features["labels"].values.reshape(30, 1)[others])
    kept = (whole["image"] == first).mean(axis=1)
    assert (kept >= whole["share"][:, 0] - 1e-6).all()


def test_where_it_is_off_every_label_counts_for_itself(mixing):
    off = AugmentedTraining(mixing.augmentations, 3, ((0, False), (5, True)), mixing.examples)
    batch, rows = pad_batch(mixing.examples.features, np.arange(4)), np.arange(4)
    found = off(batch, rows, epoch=0, step=0)
    np.testing.assert_array_equal(found["image"], batch["image"])
    np.testing.assert_array_equal(found["other_labels"], batch["labels"])
    np.testing.assert_array_equal(found["share"], np.ones((4, 1)))
    assert not np.array_equal(off(batch, rows, epoch=0, step=5)["image"], batch["image"])


@pytest.mark.parametrize(("num_replicas", "micro_batches"), [(2, 1), (1, 3)])
def test_a_split_batch_has_the_same_mixtures(mixing, num_replicas, micro_batches):
    def rows_of(replicas, parts):
        stream = BatchStream(mixing.examples, BatchingSettings(global_batch_size=8), 0, replicas, parts)
        stream.augmentation = mixing
        found = []
        for element in stream.dataset().take(3 * replicas).as_numpy_iterator():
            for part in element:
                rows = [part[name] for name in ("image", "labels", "other_labels", "share")]
                found += [tuple(np.concatenate(each).tolist()) for each in zip(*rows, strict=True)]
        return sorted(found)

    assert rows_of(num_replicas, micro_batches) == rows_of(1, 1)
