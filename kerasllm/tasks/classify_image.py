"""Image in, class out: small images of few grey levels, written as numbers.

record      {"image": "0 0 5 13 9 1 0 0 ...", "label": "3"}
features    image   [0 0 5 13 9 1 0 0 ...]
            labels  [4]                         the class counted from 1, because 0 stands for padding
answer      {"text": "3", "score": -0.02}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kerasllm.models.settings import MultilayerPerceptronSettings
from kerasllm.task import Task

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


class ClassifyImage(Task):
    """Trains and asks a `MultilayerPerceptron`."""

    fields = ("image", "label")
    inputs = {"text": "image"}
    reference = "label"
    metric_names = ("accuracy",)
    sections = {"model": MultilayerPerceptronSettings}
    augmented_inputs = {"image": "image"}

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Numbers as text by field, string [B] -> `image` int32 [B, P] and `labels` int32 [B, 1]."""
        return {"image": read_numbers(texts["image"]), "labels": read_numbers(texts["label"]) + 1}

    def build_model(self) -> keras.Model:
        """The model that this task trains and asks, of the recipe's numbers."""
        from kerasllm.models.multilayer_perceptron import MultilayerPerceptron

        self.model = MultilayerPerceptron(**self.recipe.model.model_dump())
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """Logits [B, 1, C] of `image` [B, P]."""
        return model(batch["image"], training=training)[:, None]

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each image.

        Args:
            logits: [B, 1, C], from `forward`.
            batch: with `labels` [B, 1].
            label_smoothing: in [0, 1).

        Returns:
            Losses [B, 1] in nats, and their weights [B, 1]: 1 for images, 0 for padding.
        """
        import tensorflow as tf

        from kerasllm.training.objectives import cross_entropy

        labels = batch["labels"]
        losses = cross_entropy(logits, tf.maximum(labels - 1, 0), label_smoothing)
        return losses, tf.cast(labels > 0, losses.dtype)

    def answer(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """The likeliest class of each image, as graph operations from string to string.

        Args:
            texts: string [B]; numbers that are missing count as 0, and those past the last pixel are left out.

        Returns:
            `text` string [B], the class, and `score` float32 [B], its log-probability.
        """
        import tensorflow as tf

        image = read_numbers(texts).to_tensor(shape=[None, self.recipe.model.num_inputs])
        log_probabilities = tf.nn.log_softmax(self.model(image))  # [B, C]
        best = tf.argmax(log_probabilities, axis=-1)
        return {"text": tf.strings.as_string(best), "score": tf.reduce_max(log_probabilities, axis=-1)}

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """`accuracy`: the share of images, 0 to 1, that were put in their class."""
        same = sum(answer["text"] == reference for answer, reference in zip(answers, references, strict=True))
        return {"accuracy": same / max(1, len(references))}


def read_numbers(texts: tf.Tensor) -> tf.RaggedTensor:
    """Whole numbers between spaces, string [B] -> int32 [B, None]; what is none is left out."""
    import tensorflow as tf

    words = tf.strings.split(texts)
    words = tf.ragged.boolean_mask(words, tf.strings.regex_full_match(words, "[0-9]{1,9}"))
    return tf.ragged.map_flat_values(tf.strings.to_number, words, out_type=tf.int32)
