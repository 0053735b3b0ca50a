"""Picture in, vector out, learnt without labels: two views of a picture lie near each other, and far from all others.

record      {"image": b"\\x89PNG..."}       what else there is, such as "label", is left alone
features    image        [12 40 255 ...]    uint8, H * W * D numbers; while it learns, one view of the picture
            other_image  [9 38 251 ...]     another view, added when a batch is made
            present      [1]                0 where there is no picture, but padding
answer      {"vector": [0.3, -1.2, ...]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kerasllm.data.settings import AugmentationSettings, ColorJitterSettings, FlipSettings, GreySettings
from kerasllm.data.settings import ResizedCropSettings as Crop
from kerasllm.errors import UserError
from kerasllm.models.settings import (
    PretrainedConvNetSettings,
    PretrainedResNetSettings,
    PretrainedVisionTransformerSettings,
)
from kerasllm.picture_task import PictureSettings, PictureTask
from kerasllm.settings import Settings
from kerasllm.task import refuse_r_drop

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from kerasllm.data.batching import Corruption
    from kerasllm.data.vocabulary import Vocabulary


class ContrastSettings(Settings):
    """What two views of a picture are, and how they are compared."""

    views: tuple[AugmentationSettings, ...] = Field(
        default=(
            Crop(name="resized_crop"),
            FlipSettings(name="flip"),
            ColorJitterSettings(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.4),
            GreySettings(name="grey"),
        ),
        min_length=1,
    )
    """What makes a view of a picture; as `augmentation`, which this task has no use for."""
    projection_dim: int = Field(default=64, ge=1)
    """Of the vectors that are compared; they are made of the ones that answer, and forgotten afterwards."""
    temperature: float = Field(default=0.2, gt=0)
    """The smaller it is, the more the nearest of the others count."""


ModelSettings = Annotated[
    PretrainedResNetSettings | PretrainedConvNetSettings | PretrainedVisionTransformerSettings,
    Field(discriminator="name"),
]


class Contrast(PictureTask):
    r"""Trains a model of pictures by telling its pictures apart: SimCLR.

    $$\ell_i = -\log \frac{\exp(z_i \cdot z_i' / \tau)}
    {\sum_{j \ne i} \exp(z_i \cdot z_j / \tau) + \sum_j \exp(z_i \cdot z_j' / \tau)}$$

    with the projected views z and z', of length 1, and the same from z' to z; a picture's loss is the mean of both. The
    others are those of the micro-batch on the replica: so a step depends on how its batch is split.

    Reference: [Chen et al., 2020](https://arxiv.org/abs/2002.05709).

    Raises:
        UserError: see `PictureTask`, or the objective or a view does not fit.
    """

    reference = None
    metric_names = ("found",)
    sections = {"picture": PictureSettings, "model": ModelSettings, "contrast": ContrastSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        refuse_r_drop(recipe, "compares probabilities of labels")
        self.settings: ContrastSettings = recipe.contrast

    def corruption(self) -> Corruption:
        """What makes two views of each picture.

        Raises:
            UserError: a view does not fit the pictures.
        """
        from kerasllm.data.augmentation import build_augmentation
        from kerasllm.data.views import TwoViews

        built = []
        for index, settings in enumerate(self.settings.views):
            try:
                built.append(build_augmentation(settings, {"image": self.picture.shape}, None))
            except UserError as error:
                raise UserError(f"{self.recipe.place('contrast', 'views', index)}: {error}") from error
        return TwoViews(built, ["image"])

    def build_model(self) -> keras.Model:
        """The model that the recipe names, with the layer `projector` before its last one."""
        import keras

        from kerasllm.models import model_class

        self.model = self.built(model_class(self.recipe.model.name), self.settings.projection_dim)
        width = self.model.head.kernel.shape[0]
        self.model.projector = keras.layers.Dense(width, "relu", name="projector")
        self.model.projector.build((None, width))
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """`image` and `other_image`, uint8 [B, H * W * D] -> their projections of length 1, [2, B, P]."""
        import tensorflow as tf

        both = tf.concat([self.picture.seen(batch[name]) for name in ("image", "other_image")], axis=0)
        vectors = model.head(model.projector(model.embed(both, training=training)))
        return tf.reshape(tf.math.l2_normalize(vectors, axis=-1), [2, -1, self.settings.projection_dim])

    def similarities(self, views: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """How alike each view is to all others, over the temperature.

        Args:
            views: [2, B, P], from `forward`.
            present: [B, 1]; padding is like nothing.

        Returns:
            [2 B, 2 B], with least where a view meets itself or padding; row i and column B + i are of one picture.
        """
        import tensorflow as tf

        flat = tf.reshape(views, [-1, tf.shape(views)[-1]])
        alike = tf.matmul(flat, flat, transpose_b=True) / self.settings.temperature
        hidden = tf.eye(tf.shape(flat)[0]) + (1.0 - tf.reshape(tf.tile(tf.cast(present, tf.float32), [2, 1]), [1, -1]))
        return alike - 1e9 * hidden

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of each picture, [B, 1], in nats, and its weight, 0 for padding.

        Args:
            logits: from `forward`.
            batch: with `present` [B, 1].
            label_smoothing: is without effect.
        """
        import tensorflow as tf

        alike = self.similarities(logits, batch["present"])
        count = tf.shape(logits)[1]
        wanted = tf.concat([tf.range(count) + count, tf.range(count)], axis=0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=wanted, logits=alike)
        return tf.reduce_mean(tf.reshape(losses, [2, -1]), axis=0)[:, None], tf.cast(batch["present"], tf.float32)

    def sums(self, logits: tf.Tensor, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Of how many pictures the other view was the most alike of all, and how many there are."""
        import tensorflow as tf

        present = tf.cast(batch["present"][:, 0], tf.float32)
        count = tf.shape(logits)[1]
        nearest = tf.argmax(self.similarities(logits, batch["present"])[:count], axis=-1, output_type=tf.int32)
        found = tf.cast(nearest == tf.range(count) + count, tf.float32)
        return {"found": tf.reduce_sum(found * present), "pictures": tf.reduce_sum(present)}

    def metrics_of_sums(self, sums: dict[str, float]) -> dict[str, Any]:
        """`found`: the share of pictures whose other view is the most alike of all in its batch."""
        return {"found": sums["found"] / max(1.0, sums["pictures"])}

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """None: a vector is neither right nor wrong."""
        return {}

    def answer(self, contents: tf.Tensor) -> dict[str, tf.Tensor]:
        """Contents of JPEG or PNG files, string [B] -> `vector` float32 [B, F], that of the model before projection."""
        return {"vector": self.model.embed(self.picture.seen(self.picture.decode(contents)))}
