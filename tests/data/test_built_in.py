"""The built-in sets of the gradient-descent lab: splits that share nothing, and slopes that cancel out."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from kerasllm.data.date_languages import LANGUAGE_FORMS, generate_date_languages
from kerasllm.data.digits import SIZES, generate_digits
from kerasllm.data.slopes import generate_slopes
from kerasllm.errors import UserError


def test_the_splits_of_the_digits_make_up_the_whole_set():
    records = [record for split, size in SIZES.items() for record in generate_digits(split, size, seed=3)]
    digits = load_digits()
    assert len(records) == len(digits.target) == len({record["name"] for record in records})
    for record in records[::50]:
        number = int(record["name"].removeprefix("digits#"))
        pixels = np.array(Image.open(io.BytesIO(record["image"])))
        np.testing.assert_array_equal(np.round(pixels * (16 / 255)), digits.images[number])
        assert record["label"] == str(digits.target[number])


def test_a_smaller_split_is_the_beginning_of_a_larger_one_and_the_seed_shuffles():
    ten = list(generate_digits("train", 10, seed=0))
    assert ten[:4] == list(generate_digits("train", 4, seed=0))
    assert ten != list(generate_digits("train", 10, seed=1))


def test_more_digits_than_there_are():
    with pytest.raises(UserError, match=r"data.test: 301 digits asked for, and there are 300; lower it"):
        next(generate_digits("test", 301, seed=0))


@pytest.mark.parametrize("number", [1, 2, 1001])
def test_slopes_cancel_out(number):
    records = list(generate_slopes("train", number, seed=0))
    slopes = np.array([[int(record["slope_x"]), int(record["slope_y"])] for record in records])
    assert slopes.shape == (number, 2)
    assert slopes.sum(axis=0).tolist() == [0, 0]


def test_slopes_have_the_size_that_is_said():
    slopes = np.array([list(map(int, record.values())) for record in generate_slopes("train", 4000, seed=0)])
    np.testing.assert_allclose(slopes.std(axis=0), [1000, 1000], rtol=0.05)
    assert abs(np.corrcoef(slopes.T)[0, 1]) < 0.05
    assert list(generate_slopes("train", 4, seed=0)) != list(generate_slopes("validation", 4, seed=0))


def test_the_language_of_a_date_follows_from_its_text():
    records = [record for split in ("train", "test") for record in generate_date_languages(split, 1500, seed=0)]
    labels = {}
    for record in records:
        assert labels.setdefault(record["text"].lower(), record["label"]) == record["label"]
    assert set(labels.values()) == set(LANGUAGE_FORMS)
    assert all(LANGUAGE_FORMS.values())
    train, test = ({record["text"] for record in part} for part in (records[:1500], records[1500:]))
    assert not train & test
    assert records[:9] == list(generate_date_languages("train", 9, seed=0))
    assert records[:9] != list(generate_date_languages("train", 9, seed=1))
