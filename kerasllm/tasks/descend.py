"""Down a surface of two numbers: nothing is learnt, so that the way of an optimizer can be seen.

record      {"slope_x": "-512", "slope_y": "87"}    how one example tilts the surface, in thousandths
features    slope          [-512 87]
            sample_weight  [1]                      0 stands for padding
answer      {"text": "0.98 0.96", "score": -0.0004}     where the walk has come to, whatever the text, and the height
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kerasllm.models.settings import SurfaceSettings
from kerasllm.task import Task

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from kerasllm.models.surface import Landscape


class Descend(Task):
    """Trains a `Surface`."""

    counted = "records"
    fields = ("slope_x", "slope_y")
    inputs = {"text": "slope_x"}
    reference = "slope_y"
    metric_names = ("distance",)
    sections = {"model": SurfaceSettings}

    @staticmethod
    def landscape(recipe: Any) -> Landscape:
        """The surface of a recipe, on which `compare` draws the ways of its trials."""
        from kerasllm.models.surface import LANDSCAPES

        return LANDSCAPES[recipe.model.landscape]

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Numbers as text by field, string [B] -> `slope` int32 [B, 2] and `sample_weight` int32 [B, 1]."""
        import tensorflow as tf

        columns = [tf.strings.to_number(texts[field], tf.int32) for field in self.fields]
        weights = tf.ones_like(columns[0])[:, None]
        return {
            "slope": tf.RaggedTensor.from_tensor(tf.stack(columns, axis=1)),
            "sample_weight": tf.RaggedTensor.from_tensor(weights),
        }

    def build_model(self) -> keras.Model:
        """The surface, with the position at its start."""
        from kerasllm.models.surface import Surface

        self.model = Surface(**self.recipe.model.model_dump())
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """Heights [B, 1] under each `slope` [B, 2]."""
        return model(batch["slope"], training=training)

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The heights themselves, [B, 1], and their weights [B, 1]; there are no labels to be smoothed."""
        import tensorflow as tf

        return logits, tf.cast(batch["sample_weight"], logits.dtype)

    def step_figures(self) -> dict[str, float]:
        """The position after a step, `x` and `y`, which is logged with the loss."""
        x, y = self.model.position.numpy().tolist()
        return {"x": x, "y": y}

    def answer(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """The position, the same for each text, as graph operations.

        Args:
            texts: string [B].

        Returns:
            `text` string [B], both numbers, and `score` float32 [B], the height below 0.
        """
        import tensorflow as tf

        position = self.model.position.value
        text = tf.strings.reduce_join(tf.strings.as_string(position, precision=6), separator=" ")
        height = self.model.landscape.height(*tf.unstack(position))
        return {"text": tf.fill(tf.shape(texts), text), "score": tf.fill(tf.shape(texts), -height)}

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """`distance`: from the position to the nearest minimum."""
        position = [float(number) for number in answers[0]["text"].split()]
        return {"distance": min(math.dist(position, minimum) for minimum in self.landscape(self.recipe).minima)}
