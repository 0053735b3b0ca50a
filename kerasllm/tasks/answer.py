"""A question and a context in, the part of the context that answers out, or that none does.

record      {"question": "Who?", "answers": "[{\\"text\\": \\"Ada\\", \\"start\\": 4}]", "context": "It, Ada wrote."}
features    record          [0]                         a long context gives several examples, its windows
            token_ids       [START who ? END it , ada wrote . END]
            segment_ids     [0 0 0 0 1 1 1 1 1 1]
            labels          [6 6]                       first and last token of the first answer; [0 0] where it is not
            num_cut_tokens  [0]                         of the question; counted once for a record
answer      {"text": "Ada", "start": 4, "end": 7, "score": 0.9}     in characters; "", 0 and 0 if there is none
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from kerasllm.data.squad import read_answers, stands_in
from kerasllm.errors import UserError
from kerasllm.models.settings import PretrainedBertSettings
from kerasllm.settings import Settings
from kerasllm.task import Task, check_max_length, max_length_of

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from kerasllm.data.vocabulary import Vocabulary
    from kerasllm.data.windows import Windows

WINDOWS_AT_ONCE = 32
"""That are read together for answers, so that the memory does not grow with the contexts."""


class AnsweringSettings(Settings):
    """How contexts are read, and what counts as an answer."""

    window_stride: int = Field(default=128, ge=1)
    """Tokens from the beginning of a window to that of the next; at most half a window is taken."""
    max_answer_tokens: int = Field(default=30, ge=1)
    """Longest answer that is given."""
    allow_none: bool = False
    """Whether a question may have no answer."""
    none_threshold: float = 0.0
    """Nats by which no answer must be likelier than the best one, to be given."""


class Answer(Task):
    """Trains and asks a `Bert` with a head for the first and the last token.

    Raises:
        UserError: the tokenizer does not say where tokens stand, or there are too few positions.
    """

    counted = "places"
    fields = ("question", "context", "answers")
    inputs = {"question": "question", "context": "context"}
    reference = "answers"
    text_fields = ("question", "context")
    verbatim_fields = ("context", "answers")
    metric_names = ("exact_match", "f1")
    sections = {"model": PretrainedBertSettings, "answering": AnsweringSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        self.settings: AnsweringSettings = recipe.answering
        self.max_length = self.encoding_settings(recipe)["max_sequence_length"]
        if not hasattr(self.tokenizer, "tokenize_with_offsets"):
            raise UserError(
                f"{recipe.place('tokenizer', 'kind')}: {recipe.tokenizer.kind} do not say where in a text they stand; "
                "use wordpiece"
            )
        from kerasllm.data.windows import MIN_LENGTH

        check_max_length(recipe, MIN_LENGTH)

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """The tokens that fit into both a batch and the model, special ones included, and the way between windows."""
        return {"max_sequence_length": max_length_of(recipe), "window_stride": recipe.answering.window_stride}

    @classmethod
    def fault_of(cls, record: dict[str, str]) -> str | None:
        """`missing_answer` if one of the answers is not where it should be in the context.

        Raises:
            UserError: the answers cannot be read.
        """
        is_sound = all(stands_in(answer, record["context"]) for answer in read_answers(record["answers"]))
        return None if is_sound else "missing_answer"

    def windows(self, question: tf.Tensor, context: tf.Tensor) -> Windows:
        """What is read of questions and contexts, string [B] each."""
        from kerasllm.data.windows import build_windows

        return build_windows(self.tokenizer, question, context, self.max_length, self.settings.window_stride)

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Texts by field, string [B] -> the features that the file's head lists, int32, an example for each window."""
        import tensorflow as tf

        windows = self.windows(texts["question"], texts["context"])
        firsts = [
            next((answer for answer in read_answers(answers.decode()) if stands_in(answer, context.decode())), None)
            for answers, context in zip(texts["answers"].numpy(), texts["context"].numpy(), strict=True)
        ]
        starts = tf.constant([answer["start"] if answer else 0 for answer in firsts], tf.int32)
        sizes = tf.constant([len(answer["text"]) if answer else 0 for answer in firsts], tf.int32)
        tokens_before = tf.reduce_sum(tf.cast(windows.ends <= starts[:, None], tf.int32), axis=1)
        tokens_begun = tf.reduce_sum(tf.cast(windows.begins < (starts + sizes)[:, None], tf.int32), axis=1)
        first, last = (
            tf.gather(each, windows.pairs) - windows.first_tokens for each in (tokens_before, tokens_begun - 1)
        )  # [N]
        is_inside = (tf.gather(sizes, windows.pairs) > 0) & (first >= 0) & (first <= last) & (last < windows.lengths)
        labels = tf.where(is_inside[:, None], tf.stack([first, last], axis=1) + windows.positions[:, None], 0)
        num_cut = tf.where(windows.first_tokens == 0, tf.gather(windows.num_cut, windows.pairs), 0)
        columns = {"record": windows.pairs[:, None], "labels": labels, "num_cut_tokens": num_cut[:, None]}
        return {
            "token_ids": windows.token_ids,
            "segment_ids": windows.segment_ids,
            **{name: tf.RaggedTensor.from_tensor(column) for name, column in columns.items()},
        }

    def build_model(self) -> keras.Model:
        """The model that this task trains and asks, with the head as its layer `head`."""
        from kerasllm.layers.heads import SpanHead
        from kerasllm.models.bert import Bert

        settings = self.recipe.model
        self.model = Bert(self.tokenizer.vocabulary_size, **settings.numbers)
        self.model.head = SpanHead(settings.hidden_dim, settings.initializer_stddev, name="head")
        self.model.pooler.trainable = False  # nothing here goes through it
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """What a softmax makes probabilities of.

        Args:
            batch: with `token_ids` and `segment_ids` [B, T].

        Returns:
            Logits [B, 2, T] of the first and of the last token; padding has none to speak of.
        """
        import tensorflow as tf

        from kerasllm.layers.spans import IMPOSSIBLE

        hidden = model({name: batch[name] for name in ("token_ids", "segment_ids")}, training=training)
        return tf.where(batch["token_ids"][:, None] != 0, tf.stack(model.head(hidden), axis=1), IMPOSSIBLE)

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of the first and of the last token; the mean over an example is that of both.

        Args:
            logits: [B, 2, T], from `forward`.
            batch: with `token_ids` [B, T] and `labels` [B, 2].
            label_smoothing: in [0, 1), spread over what is no padding.

        Returns:
            Losses [B, 2] in nats, and their weights [B, 2], 0 for padding.
        """
        import tensorflow as tf

        is_token = tf.cast(batch["token_ids"] != 0, logits.dtype)[:, None]  # [B, 1, T]
        log_probabilities = tf.nn.log_softmax(logits)
        losses = -tf.gather(log_probabilities, batch["labels"], batch_dims=2)
        if label_smoothing:
            num_tokens = tf.maximum(tf.reduce_sum(is_token, axis=-1), 1)
            mean = tf.reduce_sum(log_probabilities * is_token, axis=-1) / num_tokens
            losses = (1 - label_smoothing) * losses - label_smoothing * mean
        return losses, is_token[:, :, 0] * tf.ones_like(losses)

    def answer(self, question: tf.Tensor, context: tf.Tensor) -> dict[str, tf.Tensor]:
        """The likeliest part of each context, as graph operations from strings.

        A part is as likely as its first and its last token are, in the window where that is most. No answer is as
        likely as in the window where it is least.

        Args:
            question: string [B]; what takes more than half of the model is cut.
            context: string [B], of any length; bytes that are no UTF-8 are read as U+FFFD.

        Returns:
            `text` string [B], `start` and `end` int32 [B], the characters of the context that it is (the first, and
            the one after the last; combining marks that follow are taken along), and `score` float32 [B], the
            probability of what is given. Without an answer they are "", 0 and 0.
        """
        import tensorflow as tf

        context = tf.strings.unicode_transcode(context, "UTF-8", "UTF-8")
        windows, settings = self.windows(question, context), self.settings
        scores, first, last, none_scores = self.read(windows)  # [N]
        num_texts = tf.size(context)
        none = tf.math.unsorted_segment_min(none_scores, windows.pairs, num_texts)  # [B]
        best = tf.math.unsorted_segment_max(scores, windows.pairs, num_texts)
        numbers = tf.range(tf.size(scores))
        is_best = scores >= tf.gather(best, windows.pairs)
        window = tf.math.unsorted_segment_min(tf.where(is_best, numbers, numbers.dtype.max), windows.pairs, num_texts)
        is_none = tf.math.unsorted_segment_max(windows.lengths, windows.pairs, num_texts) == 0
        if settings.allow_none:
            is_none |= none - best > settings.none_threshold
        places = tf.gather(windows.first_tokens - windows.positions, window)
        begin = self.characters(windows.begins, tf.gather(first, window) + places, is_none)
        end = self.characters(windows.ends, tf.gather(last, window) + places, is_none)
        rest = tf.strings.substr(context, end, tf.strings.length(context, "UTF8_CHAR") - end, "UTF8_CHAR")
        marks = tf.strings.regex_replace(rest, r"(?s)^(\pM*).*", r"\1")
        end += tf.where(is_none, 0, tf.strings.length(marks, "UTF8_CHAR"))
        return {
            "text": tf.strings.substr(context, begin, end - begin, "UTF8_CHAR"),
            "start": begin,
            "end": end,
            "score": tf.exp(tf.where(is_none, none, best)),
        }

    @staticmethod
    def characters(rows: tf.RaggedTensor, tokens: tf.Tensor, is_none: tf.Tensor) -> tf.Tensor:
        """The value of one token of each row, int32 [B], from rows [B, None]; 0 where there is none."""
        import tensorflow as tf

        values = tf.concat([rows.flat_values, [0]], axis=0)
        return tf.gather(values, tf.where(is_none, tf.size(values) - 1, tf.cast(rows.row_starts(), tf.int32) + tokens))

    def read(self, windows: Windows) -> tuple[tf.Tensor, ...]:
        """Reads windows, some of them at a time.

        Returns:
            For each of the N windows the log-probability of its likeliest span, float32; the span's first and last
            position, int32; and the log-probability that no answer is there, float32.
        """
        import tensorflow as tf

        from kerasllm.layers.spans import best_spans

        total = tf.size(windows.pairs)
        types = (tf.float32, tf.int32, tf.int32, tf.float32)
        arrays = tuple(tf.TensorArray(each, 0, True, infer_shape=False, element_shape=[None]) for each in types)

        def read_some(start: tf.Tensor, arrays: tuple[tf.TensorArray, ...]):
            batch, is_context = windows.sequences(start, tf.minimum(start + WINDOWS_AT_ONCE, total))
            log_probabilities = tf.nn.log_softmax(self.forward(self.model, batch, training=False))
            none = tf.reduce_sum(log_probabilities[:, :, 0], axis=1)  # both at the start of the sequence
            values = (*best_spans(log_probabilities, is_context, self.settings.max_answer_tokens), none)
            place = start // WINDOWS_AT_ONCE
            return start + WINDOWS_AT_ONCE, tuple(a.write(place, v) for a, v in zip(arrays, values, strict=True))

        _, arrays = tf.while_loop(lambda start, _: start < total, read_some, (0, arrays), parallel_iterations=1)
        return tuple(array.concat() for array in arrays)

    def published_form(self) -> tuple[str, dict[str, keras.layers.Layer], tuple[str, ...]]:
        """A reader of spans."""
        return "BertForQuestionAnswering", {"qa_outputs": self.model.head}, ()

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """How good answers are, as SQuAD measures it.

        Returns:
            `exact_match` and `f1`, 0 to 1: see `metrics/answers.py`.
        """
        from kerasllm.metrics.answers import answer_metrics

        wanted = [[each["text"] for each in read_answers(text)] for text in references]
        return answer_metrics([answer["text"] for answer in answers], wanted)
