"""Encoded pictures -> pixels, as graph operations: the same ones in `prepare`, `predict` and an exported model."""

from __future__ import annotations

import tensorflow as tf

EXIF_BYTES = 1 << 16
"""Of a file, that its orientation is looked for in: the segment that holds it may not be longer."""
FLIPPED = {"left to right": (2, 3, 6, 7), "upside down": (3, 4, 7, 8)}
"""What is done to the pixels of an orientation, after rows and columns are exchanged from 5 on (EXIF 2.3, 4.6.4)."""


@tf.function(autograph=False, reduce_retracing=True)
def decode_pictures(encoded: tf.Tensor, height: int, width: int, channels: int, fit: str) -> tf.Tensor:
    """JPEG or PNG files -> pixels of one size.

    A camera's orientation is followed, alpha is laid over white, 16 bits become 8, and grey and colour each other.

    Args:
        encoded: string [B], the content of the files.
        height, width: H and W.
        channels: D, 1 (grey) or 3 (red, green, blue).
        fit: what becomes of a picture of another shape: "crop" cuts off what is too much, evenly on both sides,
            "pad" puts black there where there is too little, "stretch" changes its shape.

    Returns:
        uint8 [B, H, W, D].

    Raises:
        tf.errors.InvalidArgumentError: one is damaged, or no such file.
    """

    def decode(content: tf.Tensor) -> tf.Tensor:
        pixels = _resize(_decode(content), height, width, fit)  # float32 [H, W, 3]
        if channels == 1:
            pixels = tf.image.rgb_to_grayscale(pixels)
        return tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.uint8)

    return tf.map_fn(decode, encoded, fn_output_signature=tf.TensorSpec([height, width, channels], tf.uint8))


def _decode(content: tf.Tensor) -> tf.Tensor:
    """One file -> uint8 [h, w, 3], upright."""

    def jpeg() -> tf.Tensor:
        return _upright(tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE"), _orientation(content))

    pixels = tf.cond(tf.io.is_jpeg(content), jpeg, lambda: _over_white(tf.io.decode_png(content)))
    return tf.ensure_shape(pixels, [None, None, 3])


def _over_white(pixels: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 1 to 4], grey or colour, the last of 2 or 4 being alpha -> [h, w, 3]: c a + 255 (1 - a)."""
    pixels, channels = tf.cast(pixels, tf.int32), tf.shape(pixels)[2]
    color = tf.cond(channels > 2, lambda: pixels[:, :, :3], lambda: tf.repeat(pixels[:, :, :1], 3, axis=2))
    alpha = tf.cond(channels % 2 == 0, lambda: pixels[:, :, -1:], lambda: tf.fill(tf.shape(pixels[:, :, :1]), 255))
    return tf.cast((color * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)


def _orientation(content: tf.Tensor) -> tf.Tensor:
    """int32 scalar, 1 to 8, as a JPEG file says in its EXIF segment; 1 where it says nothing."""
    data = tf.io.decode_raw(tf.strings.substr(content, 0, EXIF_BYTES), tf.uint8)
    data = tf.cast(tf.pad(data, [[0, 64]]), tf.int32)
    segment = data[_place_of(b"Exif\0\0", data) :]
    # Tag 0x0112, of type 3, one number: in the order of bytes that the segment begins with.
    entry = tf.cond(
        tf.equal(segment[6], ord("I")),
        lambda: tf.constant([0x12, 1, 3, 0, 1, 0, 0, 0]),
        lambda: tf.constant([1, 0x12, 0, 3, 0, 0, 0, 1]),
    )
    place = _place_of(entry, segment)
    value = tf.reduce_max(segment[place + 8 : place + 10])  # one of the two bytes is 0
    is_said = (place + 10 < tf.size(segment)) & (value >= 1) & (value <= 8)
    return tf.where(is_said, value, 1)


def _place_of(pattern: bytes | tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    """Where a pattern first stands in data, int32 [N]; so near the end that nothing follows, where it does not."""
    pattern = tf.constant(list(pattern)) if isinstance(pattern, bytes) else pattern
    length = pattern.shape[0]
    count = tf.size(data) - 32
    matches = tf.reduce_all(tf.stack([data[i : i + count] == pattern[i] for i in range(length)]), axis=0)
    places = tf.cast(tf.where(matches)[:, 0], tf.int32)
    return tf.reduce_min(tf.concat([places, [count]], axis=0))


def _upright(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3] as a camera has held it -> as it is to be seen."""
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
    for axis, direction in ((1, "left to right"), (0, "upside down")):
        is_flipped = tf.reduce_any(orientation == tf.constant(FLIPPED[direction]))
        pixels = tf.cond(is_flipped, lambda p=pixels, a=axis: tf.reverse(p, [a]), lambda p=pixels: p)
    return pixels


def _resize(pixels: tf.Tensor, height: int, width: int, fit: str) -> tf.Tensor:
    """uint8 [h, w, 3] -> float32 [height, width, 3]; one of that size already keeps its bits."""
    if fit == "pad":
        floats = tf.image.resize(pixels, [height, width], preserve_aspect_ratio=True, antialias=True)
        return tf.image.resize_with_crop_or_pad(floats, height, width)
    if fit == "crop":
        h, w = tf.shape(pixels)[0], tf.shape(pixels)[1]
        kept_height = tf.clip_by_value((2 * w * height + width) // (2 * width), 1, h)
        kept_width = tf.clip_by_value((2 * h * width + height) // (2 * height), 1, w)
        top, left = (h - kept_height) // 2, (w - kept_width) // 2
        pixels = pixels[top : top + kept_height, left : left + kept_width]
    return tf.ensure_shape(tf.image.resize(pixels, [height, width], antialias=True), [height, width, 3])
