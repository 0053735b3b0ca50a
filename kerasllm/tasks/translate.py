"""Text in, text out: a sentence of one language becomes one of another.

record      {"source": "Two dogs run.", "target": "Zwei Hunde laufen."}
features    encoder_token_ids  [Two dogs run . END]
            decoder_token_ids  [START Zwei Hunde laufen . END]
answer      {"text": "Zwei Hunde laufen.", "score": -0.31}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kerasllm.errors import UserError
from kerasllm.generation.settings import GenerationSettings
from kerasllm.models.settings import EncoderDecoderSettings
from kerasllm.task import Task

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from kerasllm.data.vocabulary import Vocabulary


class Translate(Task):
    """Trains and asks an `EncoderDecoder`. One vocabulary is shared by both languages.

    Raises:
        UserError: batches may hold longer sequences than the model has positions.
    """

    fields = ("source", "target")
    inputs = {"text": "source"}
    reference = "target"
    text_fields = parallel_fields = ("source", "target")
    encodes_as_graph = True
    augmented_inputs = {"encoder_token_ids": "tokens"}
    metric_names = ("bleu", "chrf", "exact_match", "perplexity")
    sections = {"model": EncoderDecoderSettings, "generation": GenerationSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        longest, positions = recipe.batching.max_sequence_length, recipe.model.max_sequence_length
        if longest > positions:
            raise UserError(
                f"batching.max_sequence_length: {longest} is more than the {positions} positions of the model "
                "(model.max_sequence_length); lower it"
            )

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Texts by field, string [B] -> token ids by feature, int32 [B, None]."""
        import tensorflow as tf

        tokenizer = self.tokenizer
        source, target = tokenizer.tokenize(texts["source"]), tokenizer.tokenize(texts["target"])
        start = tf.fill([target.nrows(), 1], tokenizer.start_id)
        end = tf.fill([target.nrows(), 1], tokenizer.end_id)
        return {
            "encoder_token_ids": tf.concat([source, end], axis=1),
            "decoder_token_ids": tf.concat([start, target, end], axis=1),
        }

    def build_model(self) -> keras.Model:
        """The model that this task trains and asks, of the recipe's numbers and the tokenizer's vocabulary."""
        from kerasllm.models.encoder_decoder import EncoderDecoder

        self.model = EncoderDecoder(self.tokenizer.vocabulary_size, **self.recipe.model.model_dump())
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """Logits of each next token.

        Args:
            batch: `encoder_token_ids` [B, S] and `decoder_token_ids` [B, T + 1].

        Returns:
            [B, T, V].
        """
        inputs = {**batch, "decoder_token_ids": batch["decoder_token_ids"][:, :-1]}
        return model(inputs, training=training)

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each next token.

        Args:
            logits: [B, T, V], from `forward`.
            batch: with `decoder_token_ids` [B, T + 1].
            label_smoothing: in [0, 1).

        Returns:
            Losses [B, T] in nats, and their weights [B, T]: 1 at tokens, 0 at padding.
        """
        import tensorflow as tf

        from kerasllm.training.objectives import cross_entropy

        labels = batch["decoder_token_ids"][:, 1:]
        losses = cross_entropy(logits, labels, label_smoothing)
        return losses, tf.cast(labels != self.tokenizer.pad_id, losses.dtype)

    def answer(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """The best translation of each text, as graph operations from string to string.

        Args:
            texts: string [B].

        Returns:
            `text` string [B], and `score` float32 [B]: its log-probability over the length penalty.
        """
        best = self.search(texts)
        return {"text": self.tokenizer.detokenize(best.token_ids[:, 0]), "score": best.scores[:, 0]}

    def search(self, texts: tf.Tensor):
        """The n best translations: `Hypotheses` of token ids [B, N, T] and scores [B, N]."""
        import tensorflow as tf

        from kerasllm.generation.beam import beam_search

        settings, model, tokenizer = self.recipe.generation, self.model, self.tokenizer
        # Longer texts than the model has positions are cut; an empty one is still an end token long.
        tokens = tokenizer.tokenize(texts)[:, : model.max_sequence_length - 1]
        end = tf.fill([tokens.nrows(), 1], tokenizer.end_id)
        source = tf.concat([tokens, end], axis=1)
        lengths = tf.cast(source.row_lengths(), tf.float32)
        max_lengths = tf.cast(lengths * settings.max_length_ratio, tf.int32) + settings.max_extra_tokens
        max_lengths = tf.minimum(max_lengths, model.max_sequence_length)
        step, empty_caches = model.begin_decoding(source.to_tensor(tokenizer.pad_id))
        return beam_search(
            step,
            empty_caches,
            max_lengths,
            settings.beam_size,
            tokenizer.start_id,
            tokenizer.end_id,
            settings.length_penalty,
        )

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """How good translations are, on plain text.

        Returns:
            `bleu` and `chrf` (sacreBLEU, 0 to 100), `exact_match` (share, 0 to 1) and `bleu_signature`, which says
            how BLEU was computed.
        """
        from sacrebleu.metrics import BLEU, CHRF

        predictions = [answer["text"] for answer in answers]
        bleu = BLEU()
        score = bleu.corpus_score(predictions, [references]).score
        same = sum(prediction == reference for prediction, reference in zip(predictions, references, strict=True))
        return {
            "bleu": score,
            "chrf": CHRF().corpus_score(predictions, [references]).score,
            "exact_match": same / max(1, len(references)),
            "bleu_signature": str(bleu.get_signature()),
        }
