"""Documents in, words that were hidden out: a BERT learns a language from nothing but text.

record      {"text": "A paragraph. Another sentence.\\nThe next paragraph."}        a document of any length
features    token_ids     [START A paragraph . END Another sentence . END]          several examples of a document
            segment_ids   [0 0 0 0 0 1 1 1 1]       this and the next one only for pairs, with next_sentence: true
            next_sentence [0]                       0: the second part follows the first in its document, 1: it does not
            record        [17]                      the document, the first one of several
    and, in each epoch others, added when a batch is made (data/masking.py):
            token_ids     [START A MASK . END Another sentence . END]
            masked_positions [2]   masked_labels [paragraph]
answer      {"text": "Paris is big.", "tokens": ["big", "old"], "probabilities": [0.5, 0.1]} to "Paris is [MASK]."
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from kerasllm.data.masking import LABELS, POSITIONS, Masking, MaskKind
from kerasllm.data.packing import document_key, pack_pairs, pack_stretches, split_sentences
from kerasllm.errors import UserError
from kerasllm.models.settings import PretrainedBertSettings
from kerasllm.settings import Settings
from kerasllm.task import Task, check_max_length, innermost, max_length_of

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf

    from kerasllm.data.store import Examples
    from kerasllm.data.vocabulary import Vocabulary

MASK = "[MASK]"
NUM_TOKENS = 5
"""Of the first hidden token: so many likely ones are given."""
MOST_COUNTED = 10_000_000
"""Tokens that tell well enough how often each one comes."""
NUM_QUESTIONS = 64
QUESTION_CHARACTERS = (40, 200)
_CHUNK_SENTENCES = 4096
# What may be hidden in a question: a word of some letters that is not the name of a token, or a Chinese character.
_WORD = re.compile(r"[\u3400-\u9fff]|\b(?<!\[)[^\W\d_\u3400-\u9fff]{3,}")


class PretrainingSettings(Settings):
    """What is learnt from documents."""

    next_sentence: bool = True
    """Pairs of stretches, and whether the second one follows the first (BERT); false: one stretch, packed over the ends
    of documents (RoBERTa)."""
    mask: MaskKind = "token"
    """What is hidden: single tokens, whole words, or spans of some tokens (SpanBERT)."""
    mask_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens of each sequence that is hidden, special tokens not counted."""
    mean_span: float = Field(default=3.0, ge=1)
    """Tokens of a span; lengths are geometric, and at most 10."""
    masked_share: float = Field(default=0.8, ge=0, le=1)
    """Of the hidden tokens: for these stands the mask ..."""
    random_share: float = Field(default=0.1, ge=0, le=1)
    """... for these any other token; and what is left stands there itself, and is asked for too."""

    @model_validator(mode="after")
    def _check_shares(self) -> PretrainingSettings:
        if self.masked_share + self.random_share > 1:
            raise ValueError(f"masked_share {self.masked_share} and random_share {self.random_share} exceed 1")
        return self


class Pretrain(Task):
    """Trains and asks a `Bert` with a head for hidden tokens and, for pairs, one for what follows.

    Raises:
        UserError: there are too few positions, or the objective does not fit what is learnt.
    """

    fields = ("text",)
    inputs = {"text": "text"}
    reference = None
    text_fields = ("text",)
    document_fields = ("text",)
    needs_mask = True
    metric_names = ("masked_accuracy", "next_sentence_accuracy", "perplexity")
    sections = {"model": PretrainedBertSettings, "pretraining": PretrainingSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        self.settings: PretrainingSettings = recipe.pretraining
        self.max_length = self.encoding_settings(recipe)["max_sequence_length"]
        needed = 5 if self.settings.next_sentence else 3
        check_max_length(recipe, needed)
        if innermost(recipe.training.objective).name == "r_drop" and self.settings.next_sentence:
            raise UserError(
                f"{recipe.place('training', 'objective')}: r_drop compares one prediction for each position; use "
                "supervised, or pretraining.next_sentence: false"
            )

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """The tokens that fit into both a batch and the model, special ones included, and whether there are pairs."""
        return {"max_sequence_length": max_length_of(recipe), "next_sentence": recipe.pretraining.next_sentence}

    @classmethod
    def metric_names_of(cls, recipe: Any) -> tuple[str, ...]:
        """All, but without pairs not that of the next sentence."""
        chosen = recipe.pretraining.next_sentence
        return tuple(name for name in cls.metric_names if chosen or not name.startswith("next_sentence"))

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Documents, string [B] -> the features that the file's head lists, int32, N examples of all documents."""
        import numpy as np

        documents = [text.decode("utf-8") for text in texts["text"].numpy().tolist()]
        tokens, tokenizer = self.tokenize_sentences(documents), self.tokenizer
        start, end = np.int32([tokenizer.start_id]), np.int32([tokenizer.end_id])
        if not self.settings.next_sentence:
            stretches = pack_stretches(tokens, self.max_length - 2, tokenizer.end_id)
            rows = [np.concatenate([start, stretch, end]) for stretch, _ in stretches]
            return {"token_ids": ragged(rows), "record": ragged([[number] for _, number in stretches])}
        pairs = pack_pairs(tokens, [document_key(each) for each in documents], self.max_length - 3)
        segments = [np.repeat([0, 1], [len(pair.first) + 2, len(pair.second) + 1]) for pair in pairs]
        return {
            "token_ids": ragged([np.concatenate([start, pair.first, end, pair.second, end]) for pair in pairs]),
            "segment_ids": ragged(segments),
            "next_sentence": ragged([[pair.label] for pair in pairs]),
            "record": ragged([[pair.document] for pair in pairs]),
        }

    def tokenize_sentences(self, documents: Sequence[str]) -> list[list[np.ndarray]]:
        """The token ids, int32 [None], of the sentences of each document; sentences without any are left out."""
        import numpy as np
        import tensorflow as tf

        sentences = [split_sentences(document) for document in documents]
        flat = [sentence for document in sentences for sentence in document]
        rows = []
        for at in range(0, len(flat), _CHUNK_SENTENCES):  # bounds the memory of long documents
            found = self.tokenizer.tokenize(tf.constant(flat[at : at + _CHUNK_SENTENCES]))
            rows += np.split(found.flat_values.numpy(), found.row_splits.numpy()[1:-1])
        each = iter(rows)
        return [[row for _ in document if len(row := next(each))] for document in sentences]

    def corruption(self) -> Masking:
        """What hides tokens."""
        import numpy as np

        settings, tokenizer = self.settings, self.tokenizer
        return Masking(
            settings.mask,
            settings.mask_share,
            settings.mean_span,
            (settings.masked_share, settings.random_share),
            tokenizer.mask_id,
            tokenizer.special_ids,
            np.array(tokenizer.word_parts()[1]),
        )

    def build_model(self) -> keras.Model:
        """The model, with the head for hidden tokens as its layer `head` and, for pairs, `next_sentence_head`."""
        from kerasllm.layers.heads import ClassificationHead, MaskedLanguageHead
        from kerasllm.models.bert import Bert

        numbers, size = self.recipe.model, self.tokenizer.vocabulary_size
        width, stddev = numbers.hidden_dim, numbers.initializer_stddev
        self.model = Bert(size, **numbers.numbers)
        self.model.head = MaskedLanguageHead(size, width, numbers.activation, numbers.epsilon, stddev, name="head")
        if self.settings.next_sentence:
            self.model.next_sentence_head = ClassificationHead(2, width, 0.0, stddev, name="next_sentence_head")
        else:
            self.model.pooler.trainable = False  # nothing is asked of it, so it would get no gradient
        return self.model

    def begin(self, examples: Examples) -> None:
        """The bias of the head begins as the logarithm of how often each token stands in the training texts, so that
        the table of tokens, which is the embedding too, is not bent to say that first.

        Reference: [Meister et al., 2023](https://arxiv.org/abs/2212.09686).
        """
        import numpy as np

        tokens = examples.features["token_ids"].values[:MOST_COUNTED]
        counts = np.bincount(tokens, minlength=self.tokenizer.vocabulary_size).astype(np.float64)
        counts[self.tokenizer.special_ids] = 0  # which are never asked for
        self.model.head.bias.assign(np.log((counts + 1) / (counts + 1).sum()))

    def forward(
        self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool
    ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        """Logits of the hidden tokens, and of no other ones, [B, P, V]; for pairs also of what follows, [B, 2].

        Args:
            batch: with `token_ids` and for pairs `segment_ids` [B, T], and `masked_positions` [B, P].
        """
        import tensorflow as tf

        inputs = {name: batch[name] for name in ("token_ids", "segment_ids") if name in batch}
        places = batch[POSITIONS]
        if not self.settings.next_sentence:
            return model.head(model(inputs, training=training, wanted=places), embedding=model.embedding)
        places = tf.pad(places, [[0, 0], [1, 0]])  # the first token, too: what the pooler reads
        hidden = model(inputs, training=training, wanted=places)  # [B, 1 + P, D]
        follows = model.next_sentence_head(model.pooled(hidden), training=training)
        return model.head(hidden[:, 1:], embedding=model.embedding), follows

    def loss(
        self, logits: tf.Tensor | tuple[tf.Tensor, tf.Tensor], batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each hidden token, plus that of the next sentence of its row, which is not smoothed.

        So the mean over all hidden tokens, which the trainer takes, is the sum of the two means, the one of the pairs
        weighted by how many tokens are hidden in each: exact, however a batch is split. Both [B, P], weight 0 where a
        row has no more hidden tokens.
        """
        import tensorflow as tf

        masked_losses, next_losses = self.losses(logits, batch, label_smoothing)
        losses = masked_losses if next_losses is None else masked_losses + next_losses[:, None]
        return losses, tf.cast(batch[LABELS] != 0, losses.dtype)

    def losses(self, logits: Any, batch: dict[str, tf.Tensor], label_smoothing: float) -> tuple[Any, Any]:
        """Losses in nats of the hidden tokens [B, P] and of the next sentence [B], or None without pairs."""
        from kerasllm.training.objectives import cross_entropy

        if not self.settings.next_sentence:
            return cross_entropy(logits, batch[LABELS], label_smoothing), None
        masked, follows = logits
        losses = cross_entropy(masked, batch[LABELS], label_smoothing)
        return losses, cross_entropy(follows[:, None], batch["next_sentence"])[:, 0]

    def sums(self, logits: Any, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """How many tokens are hidden, how many of them are found, and their loss; the same of pairs."""
        import tensorflow as tf

        labels = batch[LABELS]
        weights = tf.cast(labels != 0, tf.float32)
        masked_losses, _ = self.losses(logits, batch, 0.0)
        masked = logits[0] if self.settings.next_sentence else logits
        right = tf.cast(tf.argmax(masked, axis=-1, output_type=tf.int32) == labels, tf.float32)
        sums = {"hidden": weights, "found": weights * right, "hidden_loss": weights * masked_losses}
        if self.settings.next_sentence:
            is_pair = tf.cast(batch["token_ids"][:, 0] != 0, tf.float32)
            follows = tf.argmax(logits[1], axis=-1, output_type=tf.int32)
            is_right = tf.cast(follows == batch["next_sentence"][:, 0], tf.float32)
            sums |= {"pairs": is_pair, "pairs_right": is_pair * is_right}
        return {name: tf.reduce_sum(values) for name, values in sums.items()}

    def metrics_of_sums(self, sums: dict[str, float]) -> dict[str, float]:
        """`masked_accuracy`, the share of the hidden tokens that are found; `perplexity`, of them alone, so that
        recipes with and without pairs compare; and for pairs `next_sentence_accuracy`."""
        loss = sums["hidden_loss"] / sums["hidden"]
        metrics = {"masked_accuracy": sums["found"] / sums["hidden"]}
        metrics["perplexity"] = math.exp(loss) if loss < 700 else math.inf  # a run that diverges goes on
        if self.settings.next_sentence:
            metrics["next_sentence_accuracy"] = sums["pairs_right"] / sums["pairs"]
        return metrics

    def questions(self, texts: Mapping[str, Sequence[str]]) -> tuple[list[list[str]], list[str]]:
        """For people to look at: a sentence of each of the first documents with one word hidden, and as it was."""
        found = []
        for document in texts["text"]:
            if len(found) == NUM_QUESTIONS:
                break
            if question := ask(document):
                found.append(question)
        columns = found or [(texts["text"][0], texts["text"][0])]
        return [[question for question, _ in columns]], [sentence for _, sentence in columns]

    def answer(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """What likely stands where texts have `[MASK]`, as graph operations from strings.

        Args:
            texts: string [B]; a mask after the last token that fits into the model stays.

        Returns:
            `text` string [B], with the likeliest token in place of each mask, found at once and not one after the
            other; for the first mask of each text the likeliest `tokens`, string [B, K], and their `probabilities`,
            float32 [B, K], among the tokens that are text; "" and 0 without a mask.
        """
        import tensorflow as tf

        (text,), tokenizer = texts, self.tokenizer
        token_ids = tokenizer.tokenize(text)[:, : self.max_length - 2]
        start, end = (tf.fill([token_ids.nrows(), 1], each) for each in (tokenizer.start_id, tokenizer.end_id))
        token_ids = tf.concat([start, token_ids, end], axis=1)
        positions = tf.ragged.range(token_ids.row_lengths())
        positions = tf.ragged.boolean_mask(positions, token_ids == tokenizer.mask_id)
        counts = positions.row_lengths()  # [B]
        places = tf.pad(tf.cast(positions.to_tensor(), tf.int32), [[0, 0], [0, 1]])  # [B, P], P at least 1
        hidden = self.model({"token_ids": token_ids.to_tensor()}, training=False, wanted=places)
        logits = self.model.head(hidden, embedding=self.model.embedding)  # [B, P, V]
        is_special = tf.reduce_max(tf.one_hot(tokenizer.special_ids, tokenizer.vocabulary_size), axis=0)  # [V]
        probabilities = tf.nn.softmax(logits - 1e9 * is_special)
        words, goes_on = map(tf.constant, tokenizer.word_parts())
        best = tf.math.top_k(probabilities[:, 0], min(NUM_TOKENS, tokenizer.vocabulary_size))
        has_mask = (counts > 0)[:, None]
        chosen = tf.argmax(probabilities, axis=-1)
        return {
            "text": fill_in(text, counts, tf.gather(words, chosen), tf.gather(goes_on, chosen)),
            "tokens": tf.where(has_mask, tf.gather(words, best.indices), ""),
            "probabilities": tf.where(has_mask, best.values, 0.0),
        }

    def published_form(self) -> tuple[str, dict[str, keras.layers.Layer], tuple[str, ...]]:
        """With pairs both heads, without only that of the hidden tokens."""
        heads = {"cls.predictions": self.model.head}
        if not self.settings.next_sentence:
            return "BertForMaskedLM", heads, ()
        return "BertForPreTraining", {**heads, "cls.seq_relationship": self.model.next_sentence_head}, ()

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """Nothing: the answers are samples; what is measured is in `metrics_of_sums`."""
        return {}


def ragged(rows: Sequence[Any]) -> tf.RaggedTensor:
    """Rows of unequal length as int32 [N, None]."""
    import numpy as np
    import tensorflow as tf

    values = np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32)
    return tf.RaggedTensor.from_row_lengths(values, np.array([len(row) for row in rows], np.int64))


def ask(document: str) -> tuple[str, str] | None:
    """A sentence of a document with one word hidden, and without; None if none is neither too short nor too long."""
    shortest, longest = QUESTION_CHARACTERS
    sentences = [each for each in split_sentences(document) if shortest <= len(each) <= longest and _WORD.search(each)]
    if not sentences:
        return None
    key = document_key(document)
    sentence = sentences[key % len(sentences)]
    words = list(_WORD.finditer(sentence))
    word = words[(key >> 32) % len(words)]
    return sentence[: word.start()] + MASK + sentence[word.end() :], sentence


def fill_in(text: tf.Tensor, counts: tf.Tensor, words: tf.Tensor, goes_on: tf.Tensor) -> tf.Tensor:
    """Texts with words in place of their masks.

    Args:
        text: string [B].
        counts: int64 [B]; only so many masks of a text are filled, the others stay.
        words: string [B, P].
        goes_on: bool [B, P], where a word is to be joined to what stands before.
    """
    import tensorflow as tf

    parts = tf.strings.split(text, MASK)  # one more than masks
    number, row = tf.ragged.range(parts.row_lengths()).flat_values, parts.value_rowids()
    is_mask = number < tf.gather(parts.row_lengths(), row) - 1
    is_filled = is_mask & (number < tf.gather(counts, row))
    place = tf.stack([row, tf.minimum(number, tf.shape(words, tf.int64)[1] - 1)], axis=1)
    word = tf.where(is_filled, tf.gather_nd(words, place), tf.where(is_mask, MASK, ""))
    before, joins = parts.flat_values, is_filled & tf.gather_nd(goes_on, place)
    before = tf.where(joins, tf.strings.regex_replace(before, r"\s+$", ""), before)
    return tf.strings.reduce_join(parts.with_flat_values(before + word), axis=1)
