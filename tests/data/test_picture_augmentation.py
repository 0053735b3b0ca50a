"""Each change of pictures by hand on one of 4 x 4, and what all of them keep."""

import numpy as np
import pytest

from kerasllm.data.draws import Draws
from kerasllm.data.picture_augmentation import ColorJitter, Cutout, Flip, Shift

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


ALL = [Flip(WIDE), Shift(WIDE, 2), Cutout(WIDE, 3), ColorJitter(WIDE, (0.4, 0.4, 0.4))]


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
