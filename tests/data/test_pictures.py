"""Where pictures come from: folders, archives, IDX files and tables; and what is wrong with some."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasllm.data.picture_decoding import decode_pictures
from kerasllm.data.pictures import (
    MAX_PIXELS,
    find_pictures,
    odd_pictures,
    picture_in,
    png_of,
    read_idx,
    read_picture,
    read_pictures,
    readable,
)
from kerasllm.data.sources import read_records
from kerasllm.errors import UserError

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
PNG = png_of(PIXELS)


def encoded(form, mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, form)
    return buffer.getvalue()


def pixels_of(content):
    return np.array(Image.open(io.BytesIO(content)))


@pytest.fixture
def folder(tmp_path):
    """Two cats and a dog, and what is no picture."""
    root = tmp_path / "animals"
    for name in ("train/cat/b.png", "train/cat/a.JPG", "train/dog/c.png", "train/cat/notes.txt", "train/dog/.d.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return root


def test_a_folder_of_folders(folder):
    records = list(read_pictures(*find_pictures("animals/train", folder.parent)))
    assert [record["name"] for record in records] == ["cat/a.JPG", "cat/b.png", "dog/c.png"]
    assert [record["label"] for record in records] == ["cat", "cat", "dog"]
    assert all(record["image"] == PNG for record in records)


@pytest.mark.parametrize("name", ["animals.tar", "animals.tar.gz"])
def test_an_archive_and_a_folder_in_it(folder, name):
    with tarfile.open(folder.parent / name, "w:gz" if name.endswith("gz") else "w") as archive:
        archive.add(folder / "train", "./train")
        archive.add(folder / "train" / "cat", "test/cat")
    records = list(read_pictures(*find_pictures(f"{name}/train", folder.parent)))
    assert sorted((each["label"], each["name"]) for each in records) == [
        ("cat", "cat/a.JPG"),
        ("cat", "cat/b.png"),
        ("dog", "dog/c.png"),
    ]
    assert len(list(read_pictures(*find_pictures(name, folder.parent)))) == 5


def test_a_picture_in_no_folder(folder):
    (folder / "train" / "x.png").write_bytes(PNG)
    with pytest.raises(UserError, match=r"x.png lies in no folder; the folder that a picture lies in is its label"):
        list(read_pictures(folder / "train"))


def test_a_path_that_is_not_there(folder):
    with pytest.raises(UserError, match=r"animals/trian: no such file or folder; did you mean 'train'"):
        find_pictures("animals/trian", folder.parent)
    with pytest.raises(UserError, match=r"animal: no such file or folder; did you mean 'animals'"):
        find_pictures("animal/train/cat", folder.parent)


def test_a_damaged_archive(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"a.tar: not a readable tar archive"):
        list(read_pictures(tmp_path / "a.tar"))


def test_what_is_read_as_it_is():
    for content in (PNG, encoded("PNG", "P"), encoded("JPEG"), encoded("JPEG", "L")):
        assert readable(content) == content


@pytest.mark.parametrize(("form", "mode"), [("BMP", "RGB"), ("GIF", "P"), ("TIFF", "RGB"), ("PPM", "RGB")])
def test_other_kinds_become_png(form, mode):
    content = readable(encoded(form, mode))
    assert content.startswith(b"\x89PNG")
    np.testing.assert_array_equal(
        pixels_of(content), np.array(Image.open(io.BytesIO(encoded(form, mode))).convert("RGB"))
    )


def test_a_jpeg_for_print_becomes_png():
    assert readable(encoded("JPEG", "CMYK")).startswith(b"\x89PNG")


def test_what_is_damaged_has_no_content():
    assert readable(PNG[:-30]) == b""
    assert readable(encoded("JPEG")[:-30]) == b""
    assert readable(b"") == b""
    assert readable(b"GIF89a nothing else") == b""


@pytest.mark.parametrize("content", [PNG, encoded("JPEG")], ids=["png", "jpeg"])
def test_a_file_that_is_cut_off_anywhere_is_read_or_refused_before_it_reaches_the_graph(content):
    whole = [readable(content[:end]) for end in range(len(content) + 1)]
    assert whole[-1] == content
    assert not whole[len(content) // 2]
    decode_pictures(tf.constant([each for each in whole if each]), 4, 4, 3, "crop")  # raises for a damaged one


def test_a_bomb_is_not_unpacked():
    width = 1 << 14
    header = struct.pack(">IIBBBBB", width, MAX_PIXELS // width + 1, 8, 2, 0, 0, 0)
    assert len(PNG[16:29]) == len(header)
    import zlib

    bomb = PNG[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + PNG[33:]
    assert readable(bomb) == b""


def idx(array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def test_a_pair_of_idx_files(tmp_path):
    pictures, labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.uint8([7, 2])
    paths = {"image": tmp_path / "p.gz", "label": tmp_path / "l"}
    paths["image"].write_bytes(gzip.compress(idx(pictures)))
    paths["label"].write_bytes(idx(labels))
    records = list(read_idx(paths))
    assert [(record["label"], record["name"]) for record in records] == [("7", "p.gz#0"), ("2", "p.gz#1")]
    np.testing.assert_array_equal([pixels_of(record["image"]) for record in records], pictures)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.uint8([1, 2, 3])), r"has 2 pictures, and .*l has 3 labels"),
        (idx(np.uint8([1, 2]))[:-1], r"has 9 bytes, and 2 of them were announced"),
        (idx(np.uint8([[1, 2]])), r"l: is no IDX file of bytes with 1 dimensions"),
    ],
)
def test_idx_files_that_do_not_fit(tmp_path, content, message):
    paths = {"image": tmp_path / "p", "label": tmp_path / "l"}
    paths["image"].write_bytes(idx(np.zeros((2, 3, 4), np.uint8)))
    paths["label"].write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_idx(paths))


def test_a_cell_holds_a_picture_or_names_one(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    for cell in ("a.png", PNG, {"bytes": PNG, "path": None}, {"bytes": None, "path": "a.png"}):
        assert picture_in(cell, tmp_path, "t.csv:2") == PNG
    assert picture_in(None, tmp_path, "t.csv:2") == b""
    with pytest.raises(UserError, match=r"^t.csv:2: .*b.png: cannot be read"):
        picture_in("b.png", tmp_path, "t.csv:2")
    with pytest.raises(UserError, match=r"^t.csv:2: holds a int; the path of a picture"):
        picture_in(3, tmp_path, "t.csv:2")


def test_a_file_that_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(UserError, match=r"a.png: is damaged, or no picture"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"b.png: cannot be read"):
        read_picture(tmp_path / "b.png")


def test_odd_pictures_are_read_as_they_are():
    pictures = odd_pictures()
    assert [readable(content) for content in pictures] == pictures
    assert len({Image.open(io.BytesIO(content)).mode for content in pictures}) >= 6


def test_pictures_of_tfds_come_as_the_files_that_they_are(tmp_path):
    """A dataset as TFDS writes it, made here without a network: one column of files, one of pixels."""
    import tensorflow_datasets as tfds

    from kerasllm.data.source_settings import TfdsSettings

    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        """Pictures as JPEG, and as numbers."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "seen": {"photo": tfds.features.Image(encoding_format="jpeg")},
                "grey": tfds.features.Tensor(shape=(4, 6, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n, picture in enumerate(pixels):
                yield n, {"seen": {"photo": picture}, "grey": picture[:, :, :1], "label": n % 2}

    TinyPictures(data_dir=tmp_path).download_and_prepare()

    def read_column(column):
        columns = {"image": column, "label": "label"}
        settings = TfdsSettings(source="tfds", name="tiny_pictures", train="train", columns=columns)
        records = list(read_records(settings, "train", tmp_path))
        assert sorted(record["label"] for record in records) == ["cat", "cat", "dog"]
        return [record["image"] for record in records]

    photos = read_column("seen/photo")
    assert [content[:2] for content in photos] == [b"\xff\xd8"] * 3, "not the JPEG that was stored"
    found = sorted(np.array(Image.open(io.BytesIO(content))).tolist() for content in read_column("grey"))
    assert found == sorted(pixels[..., 0].tolist())
