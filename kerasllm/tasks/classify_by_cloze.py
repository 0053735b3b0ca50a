"""Text in, label out, asked as a gap: "A fine film. It was [MASK]." is good if `great` fits better than `terrible`.

record      {"text": "A fine film.", "label": "good"}       and, where the pattern has it, "other_text"
features    token_ids       [START A fine film . It was MASK . END]      only the record's own texts are cut
            mask_positions  [7]
            num_cut_tokens  [0]                             what did not fit into the model
            labels          [2]                             counted from 1, because 0 stands for padding
answer      {"label": "good", "probability": 0.9, "probabilities": [0.1, 0.9], "labels": ["bad", "good"]}
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from kerasllm.errors import UserError, did_you_mean
from kerasllm.models.settings import PretrainedBertSettings
from kerasllm.settings import Settings
from kerasllm.task import Task, max_length_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import keras
    import tensorflow as tf
    from matplotlib.figure import Figure

    from kerasllm.data.vocabulary import Vocabulary

MASK, TEXT, OTHER_TEXT = "[MASK]", "{text}", "{other_text}"
PARTS = re.compile(r"(\[MASK\]|\{text\}|\{other_text\})")
NUM_ENDS = 2
"""The start and the end of a sequence."""


class ClozeSettings(Settings):
    """How a record becomes a text with a gap, and which word in the gap stands for which label."""

    pattern: str = "{text} It was [MASK]."
    """With `{text}` and `[MASK]` once each, and `{other_text}` for a pair."""
    words: dict[str, str] = Field(min_length=2)
    """Label -> the word that stands for it, one token of the vocabulary."""

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        parts = PARTS.split(pattern)
        for part in (TEXT, MASK):
            if parts.count(part) != 1:
                raise ValueError(f"must have {part} once, found {parts.count(part)} times")
        if parts.count(OTHER_TEXT) > 1:
            raise ValueError(f"must have {OTHER_TEXT} at most once")
        if left := re.search(r"\{\w*\}", "".join(parts[::2])):
            raise ValueError(f"has {left[0]}, which is no field; use {TEXT} or {OTHER_TEXT}")
        return pattern

    @property
    def fields(self) -> tuple[str, ...]:
        """Those that the pattern has, in the order of `ClassifyByCloze.text_fields`."""
        return tuple(part[1:-1] for part in (TEXT, OTHER_TEXT) if part in self.pattern)


class ClassifyByCloze(Task):
    r"""Trains a `Bert` with its masked-language head to put the word of the right label into the gap.

    $$p(y \mid x) = \exp z_{w(y)} / \sum_{y'} \exp z_{w(y')}$$

    with the logits z of the head at the gap, and the word w(y) of a label. Nothing is learnt from scratch, so that a
    few examples of each label are enough, or none. What is left out is the mean over several patterns.

    Reference: [Schick and Schütze, 2021](https://arxiv.org/abs/2001.07676), section 3.1.

    Raises:
        UserError: labels and words do not match, a word is not one token, the tokenizer has no mask, or there are too
            few positions for the pattern.
    """

    counted = "records"
    fields = ("text", "label")
    optional_fields = ("other_text",)
    inputs = {"text": "text"}
    reference = "label"
    label_field = "label"
    text_fields = ("text", "other_text")
    needs_mask = True
    metric_names = (
        "accuracy",
        *(f"{name}_{average}" for name in ("f1", "precision", "recall") for average in ("macro", "micro")),
        "mcc",
    )
    sections = {"model": PretrainedBertSettings, "cloze": ClozeSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        self.settings: ClozeSettings = recipe.cloze
        self.inputs = {field: field for field in self.settings.fields}
        given = [field for field in self.text_fields if field in recipe.data.fields]
        if given != list(self.inputs):
            place = recipe.place("cloze", "pattern")
            raise UserError(f"{place}: has {', '.join(self.inputs)}, and data.columns has {', '.join(given)}")
        self.mask_id = getattr(self.tokenizer, "mask_id", None)
        if self.mask_id is None:
            place = recipe.place("tokenizer", "kind")
            raise UserError(f"{place}: {recipe.tokenizer.kind} has no token for a gap; use wordpiece")
        self.word_ids = self.find_words()
        self.literals = {text: self.pieces(text) for text in PARTS.split(self.settings.pattern)[::2]}
        self.room = self.encoding_settings(recipe)["max_sequence_length"] - NUM_ENDS - 1
        self.room -= sum(map(len, self.literals.values()))
        if self.room < len(self.inputs):
            raise UserError(
                f"{recipe.place('cloze', 'pattern')}: leaves {self.room} tokens for the text, of those of a batch "
                "(batching.max_sequence_length) or of the model; shorten it"
            )

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """The pattern, and the tokens that fit into both a batch and the model, special ones included."""
        return {"max_sequence_length": max_length_of(recipe), "pattern": recipe.cloze.pattern}

    def pieces(self, text: str) -> list[int]:
        """The tokens of a text without start and end."""
        import tensorflow as tf

        return self.tokenizer.tokenize(tf.constant([text]))[0].numpy().tolist()

    def find_words(self) -> list[int]:
        """The token of each label, in the order of the labels' numbers.

        Raises:
            UserError: a label has no word, or the other way round; or a word is several tokens, unknown, or another's.
        """
        import tensorflow as tf

        place, words, labels = self.recipe.place("cloze", "words"), self.settings.words, self.vocabulary.labels
        for label in labels:
            if label not in words:
                raise UserError(f"{place}: has no word for the label '{label}'; it has {', '.join(words)}")
        found: dict[int, str] = {}
        for label, word in words.items():
            if label not in labels:
                raise UserError(f"{place}: '{label}' is no label of data.train; {did_you_mean(label, labels)}")
            ids = self.pieces(word)
            if len(ids) != 1 or ids[0] == self.tokenizer.unknown_id:
                shown = self.tokenizer.detokenize(tf.constant(ids or [0])[:, None]).numpy().tolist()
                parts = " + ".join(piece.decode() for piece in shown)
                raise UserError(f"{place}.{label}: '{word}' is {parts or 'nothing'} to the tokenizer; take a word that "
                                "is one token")  # fmt: skip
            if ids[0] in found:
                raise UserError(f"{place}.{label}: '{word}' is the word of '{found[ids[0]]}', too; take another one")
            found[ids[0]] = label
        return sorted(found, key=lambda each: labels.index(found[each]))

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Texts by field, string [B] -> the features that the file's head lists, int32."""
        import tensorflow as tf

        token_ids, positions, num_cut = self.fill_pattern(*(texts[field] for field in self.inputs.values()))
        numbers = {"mask_positions": positions, "num_cut_tokens": num_cut}
        numbers["labels"] = self.vocabulary.number_labels(texts["label"]) + 1
        columns = {name: tf.RaggedTensor.from_tensor(values[:, None]) for name, values in numbers.items()}
        return {"token_ids": token_ids, **columns}

    def fill_pattern(self, *texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
        """The pattern with the texts in it.

        Args:
            texts: string [B], one for each of `inputs`; cut to the room that the pattern leaves.

        Returns:
            Token ids int32 [B, None]; the position of the gap, int32 [B], whatever `[MASK]` the texts may have; and
            how many tokens were cut, int32 [B].
        """
        import tensorflow as tf

        from kerasllm.data.truncation import cut_to_room

        cut, num_cut = cut_to_room([self.tokenizer.tokenize(text) for text in texts], self.room)
        by_field = dict(zip(self.inputs, cut, strict=True))
        num_rows = cut[0].nrows()

        def constant(ids: list[int]) -> tf.RaggedTensor:
            rows = tf.tile(tf.constant(ids, tf.int32, shape=[1, len(ids)]), [num_rows, 1])
            return tf.RaggedTensor.from_tensor(rows)

        parts, position = [constant([self.tokenizer.start_id])], None
        for part in PARTS.split(self.settings.pattern):
            if part == MASK:
                position = tf.cast(tf.add_n([each.row_lengths() for each in parts]), tf.int32)
                parts.append(constant([self.mask_id]))
            elif PARTS.fullmatch(part):
                parts.append(by_field[part[1:-1]])
            else:
                parts.append(constant(self.literals[part]))
        return tf.concat([*parts, constant([self.tokenizer.end_id])], axis=1), position, num_cut

    def build_model(self) -> keras.Model:
        """The model that this task trains and asks, with the head as its layer `masked_language_head`."""
        from kerasllm.layers.heads import MaskedLanguageHead
        from kerasllm.models.bert import Bert

        settings, vocabulary_size = self.recipe.model, self.tokenizer.vocabulary_size
        self.model = Bert(vocabulary_size, **settings.numbers)
        self.model.pooler.trainable = False  # the gap is not its place
        self.model.masked_language_head = MaskedLanguageHead(
            vocabulary_size,
            settings.hidden_dim,
            settings.activation,
            settings.epsilon,
            settings.initializer_stddev,
            name="masked_language_head",
        )
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The logits of the labels' words in the gap.

        Args:
            batch: with `token_ids` [B, T] and `mask_positions` [B, 1].

        Returns:
            float32 [B, 1, C].
        """
        import tensorflow as tf

        inputs = {"token_ids": batch["token_ids"]}
        hidden = model(inputs, training=training, wanted=batch["mask_positions"])  # [B, 1, D]
        logits = model.masked_language_head(hidden, embedding=model.embedding)  # [B, 1, V]
        return tf.cast(tf.gather(logits, self.word_ids, axis=-1), tf.float32)

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of the label among all labels, [B, 1] in nats, and its weight, 0 at padding."""
        import tensorflow as tf

        from kerasllm.training.objectives import cross_entropy

        weights = tf.cast(batch["token_ids"][:, :1] != 0, logits.dtype)
        return cross_entropy(logits, tf.maximum(batch["labels"] - 1, 0), label_smoothing), weights

    def answer(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the texts are taken for, as graph operations from strings.

        Args:
            texts: string [B], one or two; what does not fit beside the pattern is cut as in training.

        Returns:
            `label` string [B]; `probability` float32 [B], of it; `probabilities` float32 [B, C] and `labels` string
            [B, C], the names that they belong to.
        """
        import tensorflow as tf

        token_ids, positions, _ = self.fill_pattern(*texts)
        batch = {"token_ids": token_ids.to_tensor(), "mask_positions": positions[:, None]}
        probabilities = tf.nn.softmax(self.forward(self.model, batch, training=False))[:, 0]  # [B, C]
        return {
            "label": self.vocabulary.name_labels(tf.argmax(probabilities, axis=-1)),
            "probability": tf.reduce_max(probabilities, axis=-1),
            "probabilities": probabilities,
            "labels": tf.tile(tf.constant(self.vocabulary.labels)[None], [tf.shape(probabilities)[0], 1]),
        }

    def published_form(self) -> tuple[str, dict[str, keras.layers.Layer], tuple[str, ...]]:
        """A masked language model; the pattern and the words are not part of it."""
        return "BertForMaskedLM", {"cls.predictions": self.model.masked_language_head}, ()

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """As those of one label in `metrics.labels.label_metrics`: `accuracy` and others, 0 to 1, and `per_label`."""
        from kerasllm.metrics.labels import label_metrics

        wanted, given = self.indicators(references), self.indicators([answer["label"] for answer in answers])
        return label_metrics(wanted, given, self.vocabulary.labels, one_label=True)

    def indicators(self, names: list[str]) -> Any:
        """Which label each name is: int [N, C], as NumPy array."""
        import numpy as np

        places = {name: index for index, name in enumerate(self.vocabulary.labels)}
        return np.eye(len(places), dtype=int)[[places[name] for name in names]]

    def pictures(
        self, answers: list[dict[str, Any]], references: list[str], columns: Sequence[Sequence[Any]]
    ) -> dict[str, Figure]:
        """`confusion`: how often each label was taken for each."""
        from kerasllm.metrics.labels import draw_confusion

        given = self.indicators([answer["label"] for answer in answers])
        return {"confusion": draw_confusion(self.indicators(references).T @ given, self.vocabulary.labels)}
