"""From a folder of pictures to a recipe: what is seen in them, and what is said of those that are no use."""

import json
import tarfile

import numpy as np
import pytest

from kerasllm.data.pictures import png_of
from kerasllm.errors import UserError
from kerasllm.first_recipes.pictures import new_pictures
from kerasllm.recipe import load_recipe


@pytest.fixture
def folder(tmp_path):
    """Bright pictures and dark ones, 30 of each, of 20 x 28 pixels."""
    draw = np.random.default_rng(0)
    for label, low in (("dark", 0), ("bright", 128)):
        for number in range(30):
            path = tmp_path / "light" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_of(draw.integers(low, low + 128, (20, 28, 3), dtype=np.uint8)))
    return tmp_path / "light"


def test_what_is_seen_stands_in_the_recipe(folder, tmp_path):
    (folder / "dark" / "broken.png").write_bytes(b"no")
    report = new_pictures(folder, tmp_path / "light.yaml")
    assert report["labels"] == {"bright": 30, "dark": 30}
    assert report["damaged"] == 1
    recipe = load_recipe(tmp_path / "light.yaml")
    assert recipe.task == "classify_image"
    assert recipe.picture.shape == (16, 32, 3) or recipe.picture.shape == (24, 32, 3)
    np.testing.assert_allclose(recipe.picture.mean, [0.5] * 3, atol=0.01)
    expected = np.sqrt(0.25**2 + (128 / 255) ** 2 / 12)
    np.testing.assert_allclose(recipe.picture.stddev, [expected] * 3, atol=0.01)


def test_grey_pictures_and_large_ones(tmp_path):
    for label in ("a", "b"):
        for number in range(10):
            path = tmp_path / "grey" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_of(np.full((600, 300), number, np.uint8)))
    report = new_pictures(tmp_path / "grey", tmp_path / "r.yaml")
    assert (report["height"], report["width"], report["channels"]) == (128, 64, 1)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["bright/*", "dark/*"], r"light: has no folder with a picture; there must be two labels"),
        (["dark/*"], r"light: has bright; there must be two labels to choose from, each a folder of pictures"),
        (["dark/1*", "dark/2*"], r"light: dark has 8 pictures, too few to be learnt and measured"),
    ],
)
def test_folders_that_are_no_use(folder, tmp_path, remove, message):
    for pattern in remove:
        for path in folder.glob(pattern):
            path.unlink()
    with pytest.raises(UserError, match=message):
        new_pictures(folder, tmp_path / "r.yaml")
    assert not (tmp_path / "r.yaml").exists()


@pytest.mark.slow
def test_from_an_archive_to_an_answer(folder, tmp_path, run_commands):
    with tarfile.open(tmp_path / "light.tar.gz", "w:gz") as archive:
        archive.add(folder, "light")
    commands = [
        ["new", "light.tar.gz"],
        ["preview", "light.yaml"],
        ["train", "light.yaml", "--run-dir", "run", "--set", "training.train_epochs=16"],
        ["evaluate", "run", "--json"],
        ["predict", "run", "light/bright/3.png", "light/dark/3.png", "--json"],
        ["why", "run", "light/dark/3.png"],
        ["export", "run", "--to", "saved"],
    ]
    done = run_commands(commands, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluated, predicted = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert evaluated["accuracy"] == 1
    assert [each["label"] for each in predicted["predictions"]] == ["bright", "dark"]
    assert done.stderr.splitlines()[-1].endswith("saved_model.py saved PICTURE")
    assert (tmp_path / "preview.png").stat().st_size > 1000
    assert (tmp_path / "why.png").stat().st_size > 1000
    assert (tmp_path / "run" / "predictions" / "test_confusion.png").exists()
