"""Text in, vector out, so that texts which mean the same lie near each other: search, grouping, repetitions.

record      {"text": "A plane takes off.", "other_text": "A plane is taking off.", "label": "5.0"}
features    token_ids         [START A plane takes off . END]
            other_token_ids   [START A plane is taking off . END]
            num_cut_tokens    [0]                            what of both did not fit into the model
            similarity        [1.0]                          (label - number_offset) / number_scale
answer      {"vector": [0.1, -0.3, ...]}                     of one text
            {"similarity": 0.93}                             of a pair, when a split is measured
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kerasllm.errors import UserError
from kerasllm.models.settings import PretrainedBertSettings
from kerasllm.settings import Settings
from kerasllm.task import Task, check_max_length, max_length_of, refuse_r_drop

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from kerasllm.data.vocabulary import Vocabulary

SPECIAL_TOKENS = 2


class EmbeddingSettings(Settings):
    """How the vectors of tokens become that of a text, and what the numbers of pairs mean."""

    pooling: Literal["mean", "first"] = "mean"
    """The mean of the vectors of all tokens, the start and the end included; or that of the start alone. Published
    encoders need the one that they were trained with, which their `1_Pooling/config.json` says."""
    normalize: bool = True
    """Divide each vector by its length, so that the product of two is the cosine of the angle between them."""
    number_offset: float = 0.0
    """Taken from the number of a pair."""
    number_scale: float = Field(default=1.0, gt=0)
    """What it is divided by then; the result is the cosine that is learnt: 5 for numbers from 0 to 5."""


class Embed(Task):
    r"""Asks a `Bert` for vectors of texts, and trains it on pairs whose likeness is known.

    $$v = \frac{1}{n} \sum_t h_t, \quad \ell = (\cos(v, v') - s)^2$$

    with the vectors h of the n tokens of a text that are no padding, and the number s of a pair, scaled. The loss of a
    pair depends on no other pair, so that a step is the same however its batch is split.

    Reference: [Reimers and Gurevych, 2019](https://arxiv.org/abs/1908.10084).

    Raises:
        UserError: there are too few positions, or the objective compares probabilities.
    """

    counted = "records"
    fields = ("text", "other_text", "label")
    inputs = {"text": "text"}
    reference = "label"
    label_field = "label"
    text_fields = ("text", "other_text")
    metric_names = ("pearson", "spearman")
    sections = {"model": PretrainedBertSettings, "embedding": EmbeddingSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        self.settings: EmbeddingSettings = recipe.embedding
        self.max_length = self.encoding_settings(recipe)["max_sequence_length"]
        check_max_length(recipe, SPECIAL_TOKENS + 1)
        refuse_r_drop(recipe, "compares probabilities, and a vector has none")

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """How numbers are scaled, and the tokens that fit into both a batch and the model, special ones included."""
        return {
            "max_sequence_length": max_length_of(recipe),
            **recipe.embedding.model_dump(include={"number_offset", "number_scale"}),
        }

    @classmethod
    def labels_in(cls, recipe: Any, text: str) -> list[str]:
        """No names, since a pair has a number.

        Raises:
            UserError: it is none, or becomes nothing that a cosine can be.
        """
        settings = recipe.embedding
        try:
            scaled = (float(text) - settings.number_offset) / settings.number_scale
        except ValueError as error:
            raise UserError(f"label '{text}' is not a number; put it right") from error
        if not (math.isfinite(scaled) and abs(scaled) <= 1 + 1e-6):
            raise UserError(
                f"label '{text}' becomes {scaled:.4g}, and a cosine lies between -1 and 1; set embedding.number_scale "
                "to the greatest number"
            )
        return []

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Texts by field, string [B] -> the features that the file's head lists, int32 but for `similarity`."""
        import tensorflow as tf

        (token_ids, num_cut), (other_ids, other_cut) = (self.tokenize(texts[field]) for field in self.text_fields)
        similarity = (tf.strings.to_number(texts["label"]) - self.settings.number_offset) / self.settings.number_scale
        return {
            "token_ids": token_ids,
            "other_token_ids": other_ids,
            "num_cut_tokens": tf.RaggedTensor.from_tensor((num_cut + other_cut)[:, None]),
            "similarity": tf.RaggedTensor.from_tensor(similarity[:, None]),
        }

    def tokenize(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor]:
        """string [B] -> token ids int32 [B, None], and how many tokens did not fit, int32 [B]."""
        import tensorflow as tf

        from kerasllm.data.truncation import cut_to_room

        tokenizer = self.tokenizer
        (tokens,), num_cut = cut_to_room([tokenizer.tokenize(texts)], self.max_length - SPECIAL_TOKENS)
        start, end = (tf.fill([tokens.nrows(), 1], each) for each in (tokenizer.start_id, tokenizer.end_id))
        return tf.concat([start, tokens, end], axis=1), num_cut

    def build_model(self) -> keras.Model:
        """The encoder, without a head."""
        from kerasllm.models.bert import Bert

        self.model = Bert(self.tokenizer.vocabulary_size, **self.recipe.model.numbers)
        self.model.pooler.trainable = False  # no vector comes from it
        return self.model

    def vectors(self, model: keras.Model, token_ids: tf.Tensor, training: bool) -> tf.Tensor:
        """int32 [B, T], 0 at padding -> float32 [B, D]; that of a row of padding alone is 0."""
        import tensorflow as tf

        hidden = tf.cast(model({"token_ids": token_ids}, training=training), tf.float32)  # [B, T, D]
        weights = tf.cast(token_ids != 0, tf.float32)[:, :, None]  # [B, T, 1]
        if self.settings.pooling == "first":
            pooled = hidden[:, 0] * weights[:, 0]
        else:
            pooled = tf.reduce_sum(hidden * weights, axis=1) / tf.maximum(tf.reduce_sum(weights, axis=1), 1.0)
        return tf.math.l2_normalize(pooled, axis=-1) if self.settings.normalize else pooled  # [B, D]

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The cosine of each pair.

        Args:
            batch: with `token_ids` [B, T] and `other_token_ids` [B, S].

        Returns:
            float32 [B, 1].
        """
        vectors = (self.vectors(model, batch[name], training) for name in ("token_ids", "other_token_ids"))
        return cosine(*vectors)[:, None]

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Squared error of the cosine of each pair, [B, 1], and its weight, 0 at padding; nothing is to be smoothed."""
        import tensorflow as tf

        weights = tf.cast(batch["token_ids"][:, :1] != 0, logits.dtype)
        return tf.square(logits - tf.cast(batch["similarity"], logits.dtype)), weights

    def answer(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """string [B] -> `vector` float32 [B, D], as graph operations; what does not fit is cut as in training."""
        token_ids, _ = self.tokenize(texts)
        return {"vector": self.vectors(self.model, token_ids.to_tensor(), training=False)}

    def asked_in_evaluation(self) -> Pairs:
        """Both texts of a record, compared by the vectors that `answer` gives."""
        return Pairs(self)

    def published_form(self) -> tuple[str, dict[str, keras.layers.Layer], tuple[str, ...]]:
        """The plain encoder."""
        return "BertModel", {}, ()

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """`pearson` and `spearman` of the cosines with the numbers, -1 to 1, and 0 where one of them is constant."""
        from kerasllm.metrics.labels import number_metrics

        return number_metrics([float(text) for text in references], [answer["similarity"] for answer in answers])


class Pairs:
    """What is asked when a split is measured: how alike two texts are.

    Args:
        task: with its model built.
    """

    inputs = {"text": "text", "other_text": "other_text"}

    def __init__(self, task: Embed):
        self.task = task

    def questions(self, texts: Mapping[str, Sequence[str]]) -> tuple[list[list[str]], list[str]]:
        """The texts of a split by field -> those of each pair, and the numbers that they are measured against."""
        return [list(texts[field]) for field in self.inputs.values()], list(texts[self.task.reference])

    def shown_questions(self, texts: Mapping[str, Sequence[str]]) -> list[list[str]]:
        """Both texts of each pair."""
        return self.questions(texts)[0]

    def answer(self, texts: tf.Tensor, other_texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """string [B] twice -> `similarity` float32 [B], the cosine of their vectors, -1 to 1."""
        return {"similarity": cosine(*(self.task.answer(each)["vector"] for each in (texts, other_texts)))}


def cosine(vectors: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """float32 [B, D] twice -> [B], and 0 where one is 0."""
    import tensorflow as tf

    return tf.reduce_sum(tf.math.l2_normalize(vectors, axis=-1) * tf.math.l2_normalize(others, axis=-1), axis=-1)
