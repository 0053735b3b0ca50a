"""What the tasks share that take pictures: of one size, as pixels in their examples, as numbers for their models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from kerasllm.errors import UserError
from kerasllm.settings import Settings
from kerasllm.task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tensorflow as tf

    from kerasllm.data.store import Examples
    from kerasllm.data.vocabulary import Vocabulary

MOST_WHITENED = 5_000_000
"""Pixels of all pictures together that are looked at for their patches, so that memory does not grow with these."""


class PictureSettings(Settings):
    """What every picture becomes before the model sees it, in training as on a server."""

    height: int = Field(default=32, ge=1)
    """In pixels."""
    width: int = Field(default=32, ge=1)
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for red, green and blue."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """What becomes of a picture of another shape: what is too much is cut off, what lacks is black, or it changes its
    shape."""
    mean: tuple[float, ...] = (0.5,)
    """Of each channel, or one for all, with pixels from 0 to 1: it is taken from them,"""
    stddev: tuple[float, ...] = (0.25,)
    """and they are divided by this. Those of the training pictures are good ones."""

    answer_views: Literal[1, 2, 6] = 1
    """An answer is the mean of what the model makes of so many views of a picture, in as many times the time: 2 are the
    picture and its mirror image; 6 are these, which count for half, and both moved by a pixel up and to the left, and
    down and to the right."""

    @model_validator(mode="after")
    def _check_numbers(self) -> PictureSettings:
        for key in ("mean", "stddev"):
            if len(getattr(self, key)) not in (1, self.channels):
                raise ValueError(f"{key}: must have 1 or {self.channels} numbers, found {len(getattr(self, key))}")
        if min(self.stddev) <= 0:
            raise ValueError("stddev: must be greater than 0")
        if self.answer_views == 6 and min(self.height, self.width) < 2:
            raise ValueError("answer_views: a picture of one pixel's height or width cannot be moved; take 2 or 1")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W and D."""
        return self.height, self.width, self.channels

    def encoding_settings(self) -> dict[str, Any]:
        """What the pixels of an example depend on."""
        return self.model_dump(include={"height", "width", "channels", "fit"})


class PictureInput:
    """Files -> pixels -> numbers; the same graph operations in `prepare`, `evaluate` and an exported model."""

    def __init__(self, settings: PictureSettings):
        self.settings = settings
        self.shape = settings.shape

    def decode(self, contents: tf.Tensor) -> tf.Tensor:
        """Contents of JPEG or PNG files, string [B] -> uint8 [B, H, W, D]."""
        from kerasllm.data.picture_decoding import decode_pictures

        return decode_pictures(contents, *self.shape, self.settings.fit)

    def features(self, contents: tf.Tensor) -> dict[str, tf.RaggedTensor]:
        """Contents of files, string [B] -> `image` uint8 [B, H * W * D], and `present` int32 [B, 1], which is 0 in
        padding alone."""
        import tensorflow as tf

        height, width, channels = self.shape
        rows = tf.reshape(self.decode(contents), [-1, height * width * channels])
        present = tf.ones([tf.shape(rows)[0], 1], tf.int32)
        return {"image": tf.RaggedTensor.from_tensor(rows), "present": tf.RaggedTensor.from_tensor(present)}

    def seen(self, pixels: tf.Tensor) -> tf.Tensor:
        """Pixels from 0 to 255, [B, H * W * D] or [B, H, W, D] -> what a model sees of them, float32 [B, H, W, D]."""
        import tensorflow as tf

        pixels = tf.cast(tf.reshape(pixels, [-1, *self.shape]), tf.float32)
        return (pixels / 255.0 - tf.constant(self.settings.mean)) / tf.constant(self.settings.stddev)

    def views(self, seen: tf.Tensor) -> list[tuple[float, tf.Tensor]]:
        """What a model sees of pictures, [B, H, W, D] -> the views that answer together: the share of each, and it."""
        import tensorflow as tf

        if self.settings.answer_views == 1:
            return [(1.0, seen)]
        moved = [(1.0, seen)]
        if self.settings.answer_views == 6:
            around = tf.pad(seen, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
            moved = [(0.5, seen), (0.25, around[:, 2:, 2:]), (0.25, around[:, :-2, :-2])]
        return [(share / 2, view) for share, each in moved for view in (each, tf.reverse(each, [2]))]


class PictureTask(Task):
    """Reads the content of picture files, in `prepare`, from a person and on a server.

    Attributes:
        picture: what makes numbers of them.

    Raises:
        UserError: the recipe does not say how many pictures make a batch.
    """

    counted = "records"
    fields = ("image",)
    optional_fields = ("label", "name")
    inputs = {"image_bytes": "image"}
    encodes_as_graph = True

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        if recipe.batching.global_batch_size is None:
            place = recipe.place("batching", "global_batch_size")
            raise UserError(f"{place}: is missing; pictures have no tokens to be counted: say how many make a batch")
        self.picture = PictureInput(recipe.picture)

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """The size of the pictures, and what else the task reads."""
        return {**recipe.picture.encoding_settings(), **super().encoding_settings(recipe)}

    def built(self, architecture: Any, num_outputs: int) -> Any:
        """The model that the recipe names in its section `model`, for its pictures.

        Args:
            architecture: the class of that name.
            num_outputs: what it gives for a picture.

        Raises:
            UserError: a number does not fit the size of the pictures.
        """
        settings, no_numbers = self.recipe.model, {"name", "pretrained"}
        numbers = {name: getattr(settings, name) for name in type(settings).model_fields if name not in no_numbers}
        try:
            return architecture(*self.picture.shape, num_outputs, **numbers)
        except ValueError as error:
            raise UserError(f"{self.recipe.place('model')}: {error}") from error

    def begin(self, examples: Examples) -> None:
        """A layer that whitens pictures learns how from training pictures, evenly spread, as files lie by label."""
        from kerasllm.layers.whitening import Whitening

        height, width, channels = self.picture.shape
        for layer in self.model._flatten_layers():
            if isinstance(layer, Whitening):
                rows = examples.features["image"].values.reshape(-1, height * width * channels)
                step = math.ceil(len(rows) * height * width / MOST_WHITENED)
                layer.learn(self.picture.seen(rows[::step]).numpy())

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Contents of files, string [B] -> `image` and `present`, as `PictureInput.features` gives them."""
        return self.picture.features(texts["image"])

    def read_input(self, argument: str) -> bytes:
        """The content of the file that a person names.

        Raises:
            UserError: it cannot be read, or is no picture.
        """
        from kerasllm.data.pictures import read_picture

        return read_picture(Path(argument))

    def odd_inputs(self) -> list[bytes]:
        """Pictures of all kinds that a file may have."""
        from kerasllm.data.pictures import odd_pictures

        return odd_pictures()

    def shown_questions(self, texts: Mapping[str, Sequence[Any]]) -> list[list[str]]:
        """The names of the pictures in place of their contents."""
        return [list(texts["name"]) if "name" in texts else list(map(str, range(1, len(texts["image"]) + 1)))]
