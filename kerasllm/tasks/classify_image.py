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
from kerasllm.picture_task import PictureSettings, PictureTask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


class ClassifyImage(PictureTask, LabelTask):
    """Trains and asks a model that makes logits [B, C] of pictures [B, H, W, D].

    Raises:
        UserError: see `LabelTask` and `PictureTask`.
    """

    fields = ("image", "label")
    optional_fields = ("name",)
    sections = {"picture": PictureSettings, "model": ModelSettings, "classification": ClassificationSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        if self.settings.baseline:
            place = recipe.place("classification", "baseline")
            raise UserError(f"{place}: counts words, and a picture has none; leave it out")
        self.mixes_labels = self.settings.kind != "number"
        self.augmented_inputs = {"image": self.picture.shape}

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Contents of files and labels by field, string [B] -> the features that the file's head lists."""
        return {**super().encode(texts), **self.encode_labels(texts["label"])}

    def build_model(self) -> keras.Model:
        """The model that the recipe names."""
        from kerasllm.models import model_class

        self.model = self.built(model_class(self.recipe.model.name), self.num_outputs)
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """`logits_of` what the model makes of `image`, uint8 [B, H * W * D]."""
        import tensorflow as tf

        seen = self.picture.seen(batch["image"])
        views = [(1.0, seen)] if training else self.picture.views(seen)
        return self.logits_of(tf.add_n([share * model(view, training=training) for share, view in views]))

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

    def further_endpoints(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
        """`embed`: contents of files, string [B] -> `vector` float32 [B, F], what the head sees of them."""
        return {
            "embed": lambda contents: {"vector": self.model.embed(self.picture.seen(self.picture.decode(contents)))}
        }

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
