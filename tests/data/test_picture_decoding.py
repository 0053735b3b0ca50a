"""Pictures of all kinds as graph operations decode them, against Pillow and by hand."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kerasllm.data.picture_decoding import decode_pictures

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (8, 12, 3), dtype=np.uint8)
ALPHA = DRAW.integers(0, 256, (8, 12, 1), dtype=np.uint8)
COLOR = Image.fromarray(PIXELS)
GREY = Image.fromarray(PIXELS[:, :, 0])


def encoded(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(content, height=8, width=12, channels=3, fit="crop"):
    return decode_pictures(tf.constant([content]), height, width, channels, fit)[0].numpy()


def over_white(pixels, alpha):
    return np.round((pixels.astype(float) * alpha + 255.0 * (255 - alpha)) / 255)


def test_a_picture_of_the_right_size_keeps_its_bits():
    np.testing.assert_array_equal(decoded(encoded(COLOR)), PIXELS)
    np.testing.assert_array_equal(decoded(encoded(GREY), channels=1), PIXELS[:, :, :1])


def test_grey_and_colour_become_each_other():
    np.testing.assert_array_equal(decoded(encoded(GREY)), np.repeat(PIXELS[:, :, :1], 3, axis=2))
    expected = PIXELS @ [0.2989, 0.587, 0.114]
    np.testing.assert_allclose(decoded(encoded(COLOR), channels=1)[:, :, 0], expected, atol=0.51)


@pytest.mark.parametrize("colors", [2, 16, 200])
def test_palettes_of_any_depth(colors):
    picture = COLOR.quantize(colors)
    np.testing.assert_array_equal(decoded(encoded(picture)), np.array(picture.convert("RGB")))


def test_alpha_is_laid_over_white():
    for pixels in (PIXELS, PIXELS[:, :, :1]):
        picture = Image.fromarray(np.concatenate([pixels, ALPHA], axis=2))
        expected = np.broadcast_to(over_white(pixels, ALPHA), PIXELS.shape)
        np.testing.assert_array_equal(decoded(encoded(picture)), expected)


def test_one_bit_and_sixteen():
    picture = GREY.convert("1")
    np.testing.assert_array_equal(decoded(encoded(picture), channels=1)[:, :, 0], np.array(picture) * 255)
    deep = Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(decoded(encoded(deep), channels=1)[:, :, 0], PIXELS[:, :, 0])


@pytest.mark.parametrize("order", ["MM", "II"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_held_in_any_way(orientation, order):
    stored = COLOR if orientation < 5 else COLOR.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif.endian = {"MM": ">", "II": "<"}[order]
    exif[0x010F], exif[0x0112] = "a camera", orientation
    content = encoded(stored, "JPEG", quality=100, subsampling=0, exif=exif.tobytes())
    assert order.encode() in content[:40]
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))).astype(int)
    assert upright.shape == PIXELS.shape
    assert np.abs(decoded(content) - upright).max() <= 1


def test_a_jpeg_without_orientation():
    content = encoded(COLOR, "JPEG", quality=100, subsampling=0)
    assert np.abs(decoded(content) - np.array(Image.open(io.BytesIO(content))).astype(int)).max() <= 1


def test_what_is_too_much_is_cut_off_evenly():
    np.testing.assert_array_equal(decoded(encoded(COLOR), 8, 8), PIXELS[:, 2:10])
    np.testing.assert_array_equal(decoded(encoded(COLOR), 4, 12), PIXELS[2:6])


def test_what_lacks_is_black():
    padded = decoded(encoded(COLOR), 16, 12, fit="pad")
    np.testing.assert_array_equal(padded[4:12], PIXELS)
    assert not padded[:4].any()
    assert not padded[12:].any()


def test_a_shape_is_stretched():
    flat = Image.fromarray(np.full((4, 20, 3), 77, np.uint8))
    np.testing.assert_array_equal(decoded(encoded(flat), 10, 10, fit="stretch"), np.full((10, 10, 3), 77))


def test_smaller_pictures_are_means():
    blocks = np.kron(np.uint8([[10, 50], [90, 200]]), np.ones((8, 8), np.uint8))
    small = decoded(encoded(Image.fromarray(blocks)), 4, 4, channels=1)[:, :, 0]
    np.testing.assert_array_equal(small[0, [0, 3]], [10, 50])
    np.testing.assert_array_equal(small[3, [0, 3]], [90, 200])


def test_each_of_a_batch_by_itself():
    tall = COLOR.transpose(Image.Transpose.ROTATE_90)
    batch = decode_pictures(tf.constant([encoded(COLOR), encoded(tall)]), 8, 8, 3, "crop")
    np.testing.assert_array_equal(batch[0], decoded(encoded(COLOR), 8, 8))
    np.testing.assert_array_equal(batch[1], decoded(encoded(tall), 8, 8))


def test_what_is_damaged_is_refused():
    for content in (encoded(COLOR)[:60], encoded(COLOR, "JPEG")[:200], b"", b"no picture"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decoded(content)
