"""Text in, label out: one label of several, several labels at once, or a number; of one text or of a pair.

record      {"text": "A fine film.", "label": "good"}       and, where the recipe names it, "other_text"
features    token_ids       [START A fine film . END]       a pair goes on with its other text and another END
            segment_ids     [0 0 0 0 0 0]                   1 in the other text
            num_cut_tokens  [0]                             what did not fit into the model
            labels          [2]                             counted from 1, because 0 stands for padding
            or number       [0.25]                          (value - number_offset) / number_scale
answer      {"label": "good", "probability": 0.9, "probabilities": [0.1, 0.9], "labels": ["bad", "good"]}
            or {"number": 3.75}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kerasllm.label_task import ClassificationSettings, LabelTask
from kerasllm.models.settings import PretrainedBertSettings
from kerasllm.task import check_max_length, max_length_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import keras
    import tensorflow as tf

    from kerasllm.data.vocabulary import Vocabulary


class ClassifyText(LabelTask):
    """Trains and asks a `Bert` with a head.

    Raises:
        UserError: see `LabelTask`, or there are too few positions.
    """

    fields = ("text", "label")
    optional_fields = ("other_text",)
    inputs = {"text": "text"}
    text_fields = ("text", "other_text")
    encodes_as_graph = True
    sections = {"model": PretrainedBertSettings, "classification": ClassificationSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        self.is_pair = "other_text" in recipe.data.fields
        if self.is_pair:
            self.inputs = {"text": "text", "other_text": "other_text"}
        self.max_length = self.encoding_settings(recipe)["max_sequence_length"]
        needed = 1 + 2 * len(self.inputs)  # a token of each text, the start, and an end after each
        check_max_length(recipe, needed)

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """How labels are read, and the tokens that fit into both a batch and the model, special ones included."""
        return {"max_sequence_length": max_length_of(recipe), **super().encoding_settings(recipe)}

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Texts by field, string [B] -> the features that the file's head lists, int32 but for `number`."""
        import tensorflow as tf

        token_ids, segment_ids, num_cut = self.tokenize(*(texts[field] for field in self.inputs.values()))
        features = {
            "token_ids": token_ids,
            "segment_ids": segment_ids,
            "num_cut_tokens": tf.RaggedTensor.from_tensor(num_cut[:, None]),
        }
        return {**features, **self.encode_labels(texts["label"])}

    def tokenize(self, *texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.Tensor]:
        """One text or two, string [B] each -> token ids and segment ids, int32 [B, None], and tokens cut, int32 [B].

        A pair that is too long loses tokens at the end of the longer text, until both are as long.
        """
        import tensorflow as tf

        from kerasllm.data.truncation import cut_to_room

        tokenizer = self.tokenizer
        tokens, num_cut = cut_to_room([tokenizer.tokenize(text) for text in texts], self.max_length - 1 - len(texts))
        start, end = (tf.fill([tokens[0].nrows(), 1], each) for each in (tokenizer.start_id, tokenizer.end_id))
        segments = [tf.concat([each, end], axis=1) for each in tokens]
        segments[0] = tf.concat([start, segments[0]], axis=1)
        numbers = [tf.ones_like(segment) * index for index, segment in enumerate(segments)]
        return tf.concat(segments, axis=1), tf.concat(numbers, axis=1), num_cut

    def build_model(self) -> keras.Model:
        """The model that this task trains and asks, with the head as its layer `head`."""
        from kerasllm.layers.heads import ClassificationHead
        from kerasllm.models.bert import Bert

        settings = self.recipe.model
        self.model = Bert(self.tokenizer.vocabulary_size, **settings.numbers)
        self.model.head = ClassificationHead(
            self.num_outputs, settings.hidden_dim, settings.dropout, settings.initializer_stddev, name="head"
        )
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """`logits_of` what the head makes of `token_ids` and `segment_ids` [B, T]."""
        inputs = {name: batch[name] for name in ("token_ids", "segment_ids")}
        return self.logits_of(model.head(model.summary_of(inputs, training=training), training=training))

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `loss_of` says; nothing but padding, `token_ids` [B, T] that begin with 0, has no weight."""
        import tensorflow as tf

        weights = tf.cast(batch["token_ids"][:, :1] != 0, logits.dtype)  # [B, 1]
        return self.loss_of(logits, batch, weights, label_smoothing)

    def answer(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the texts are taken for, as `answers_of` says, as graph operations from strings.

        Args:
            texts: string [B], one or two; what does not fit into the model is cut as in training.
        """
        token_ids, segment_ids, _ = self.tokenize(*texts)
        batch = {"token_ids": token_ids.to_tensor(), "segment_ids": segment_ids.to_tensor()}
        return self.answers_of(self.forward(self.model, batch, training=False))

    def published_form(self) -> tuple[str, dict[str, keras.layers.Layer], tuple[str, ...]]:
        """A sequence classifier; that of a number has a single output without a name."""
        labels = () if self.settings.kind == "number" else self.vocabulary.labels
        return "BertForSequenceClassification", {"classifier": self.model.head}, labels

    def baseline(
        self, training: Mapping[str, Iterable[str]], columns: Sequence[Sequence[str]], references: list[str]
    ) -> dict[str, Any]:
        """Where the recipe asks for it, `baseline_accuracy` and `baseline_f1_macro`: those of
        `label_by_words`, which learns from the training split. It has all its texts in memory."""
        if not self.settings.baseline:
            return {}
        from kerasllm.metrics.labels import label_by_words

        texts = [" ".join(parts) for parts in zip(*(training[field] for field in self.inputs.values()), strict=True)]
        asked = [" ".join(parts) for parts in zip(*columns, strict=True)]
        labels = label_by_words(texts, list(training["label"]), asked)
        metrics = self.figures_of(labels, references)
        return {f"baseline_{name}": metrics[name] for name in ("accuracy", "f1_macro")}
