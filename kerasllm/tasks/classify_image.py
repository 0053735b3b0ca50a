"""Picture in, label out: one label of several, several labels at once, or a number.

record      {"image": b"\\x89PNG...", "label": "cat", "name": "train/cat/0001.png"}
features    image   [12 40 255 ...]     uint8, H * W * D numbers: rows of pixels, each with its channels
            labels  [2]                 counted from 1, because 0 stands for padding
            or number [0.25]            (value - number_offset) / number_scale
            present [1]                 0 where there is no picture, but padding
answer      {"label": "cat", "probability": 0.9, "probabilities": [0.9, 0.1], "labels": ["cat", "dog"]}
            or {"number": 3.75}
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kerasllm.errors import UserError
from kerasllm.label_task import ClassificationSettings, LabelTask
from kerasllm.models.settings import (
    MultilayerPerceptronSettings,
    PretrainedConvNetSettings,
    PretrainedResNetSettings,
    PretrainedVisionTransformerSettings,
)
from kerasllm.picture_input import PictureInput, PictureSettings, check_batching

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import keras
    import tensorflow as tf
    from matplotlib.figure import Figure

    from kerasllm.data.vocabulary import Vocabulary

MAX_MISTAKES, MISTAKE_COLUMNS = 32, 8


ModelSettings = Annotated[
    PretrainedResNetSettings
    | PretrainedConvNetSettings
    | PretrainedVisionTransformerSettings
    | MultilayerPerceptronSettings,
    Field(discriminator="name"),
]


class ClassifyImage(LabelTask):
    """Trains and asks a model that makes logits [B, C] of pictures [B, H, W, D].

    Raises:
        UserError: see `LabelTask`, or the recipe does not say how many pictures make a batch.
    """

    fields = ("image", "label")
    optional_fields = ("name",)
    inputs = {"image_bytes": "image"}
    sections = {"picture": PictureSettings, "model": ModelSettings, "classification": ClassificationSettings}
    encodes_as_graph = True

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        check_batching(recipe)
        self.mixes_labels = self.settings.kind != "number"
        self.picture = PictureInput(recipe.picture)
        self.augmented_inputs = {"image": self.picture.shape}

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """The size of the pictures, and how labels are read."""
        return {**recipe.picture.encoding_settings(), **super().encoding_settings(recipe)}

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Contents of files and labels by field, string [B] -> the features that the file's head lists."""
        return {**self.picture.features(texts["image"]), **self.encode_labels(texts["label"])}

    def build_model(self) -> keras.Model:
        """The model that the recipe names."""
        from kerasllm.models import model_class

        settings = self.recipe.model
        no_numbers = {"name", "pretrained"}
        numbers = {name: getattr(settings, name) for name in type(settings).model_fields if name not in no_numbers}
        try:
            self.model = model_class(settings.name)(*self.picture.shape, self.num_outputs, **numbers)
        except ValueError as error:  # of a number that does not fit the size of the pictures
            raise UserError(f"{self.recipe.place('model')}: {error}") from error
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """`logits_of` what the model makes of `image`, uint8 [B, H * W * D]."""
        import tensorflow as tf

        seen = self.picture.seen(batch["image"])
        outputs = model(seen, training=training)
        if self.recipe.picture.mirror_answers and not training:
            outputs = 0.5 * (outputs + model(tf.reverse(seen, [2])))
        return self.logits_of(outputs)

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `loss_of` says; padding has no weight."""
        import tensorflow as tf

        return self.loss_of(logits, batch, tf.cast(batch["present"], logits.dtype), label_smoothing)

    def answer(self, contents: tf.Tensor) -> dict[str, tf.Tensor]:
        """What pictures are taken for, as `answers_of` says, as graph operations.

        Args:
            contents: of JPEG or PNG files, string [B].
        """
        return self.answers_of(self.forward(self.model, {"image": self.picture.decode(contents)}, training=False))

    def pictures(
        self, answers: list[dict[str, Any]], references: list[str], columns: Sequence[Sequence[Any]]
    ) -> dict[str, Figure]:
        """`confusion`, as of any labels; and `mistakes`, the pictures that the model was surest of, and wrong."""
        import tensorflow as tf

        from kerasllm.picture_grid import draw_grid

        found = super().pictures(answers, references, columns)
        if self.settings.kind != "one_label":
            return found
        pairs = list(enumerate(zip(answers, references, strict=True)))
        wrong = [(answer["probability"], place) for place, (answer, right) in pairs if answer["label"] != right]
        worst = [place for _, place in sorted(wrong, reverse=True)[:MAX_MISTAKES]]
        if worst:
            pixels = self.picture.decode(tf.constant([columns[0][place] for place in worst])).numpy()
            captions = [f"{references[place]}: {answers[place]['label']}" for place in worst]
            title = f"{len(wrong):,} of {len(references):,} are wrong; right: given, the surest first"
            found["mistakes"] = draw_grid(pixels, captions, MISTAKE_COLUMNS, title)
        return found

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
        return [list(texts["name"])] if "name" in texts else [list(map(str, range(1, len(texts["label"]) + 1)))]
