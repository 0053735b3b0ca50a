"""The Transformer encoder-decoder."""

from __future__ import annotations

from functools import partial

import keras
import tensorflow as tf

from kerasllm.layers.attention import causal_mask, padding_attention_mask
from kerasllm.layers.dropout import Dropout
from kerasllm.layers.embedding import PositionEmbedding, TokenEmbedding
from kerasllm.layers.normalization import LayerNormalization
from kerasllm.layers.transformer import TransformerBlock


class EncoderDecoder(keras.Model):
    """Reads a source sequence, and gives the logits of each next token of a target sequence.

    One embedding table serves the source, the target and the logits. `decode` is the one way through the decoder:
    with all target positions at once in training, and position by position with a cache in generation.

    Args:
        vocabulary_size: V, shared by source and target.
        num_layers: blocks of the encoder, and as many of the decoder.
        num_heads: H.
        hidden_dim: D.
        intermediate_dim: F.
        max_sequence_length: number of positions, of the source and of the target.
        activation: of the feed-forward networks, a Keras name.
        dropout: rate after the embeddings and after each part of a block.
        attention_dropout: rate of the attention probabilities.
        activation_dropout: rate inside the feed-forward networks.
        normalization: "pre" or "post": before each part of a block, or after it.
        positions: "sinusoidal" or "learned".

    Raises:
        ValueError: `num_heads` does not divide `hidden_dim`.

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762).
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int = 6,
        num_heads: int = 8,
        hidden_dim: int = 512,
        intermediate_dim: int = 2048,
        max_sequence_length: int = 256,
        activation: str = "relu",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        normalization: str = "pre",
        positions: str = "sinusoidal",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads, self.hidden_dim = num_heads, hidden_dim
        self.max_sequence_length = max_sequence_length
        block = {
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "activation": activation,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "activation_dropout": activation_dropout,
            "normalization": normalization,
        }
        self.embedding = TokenEmbedding(vocabulary_size, hidden_dim, name="embedding")
        self.encoder_positions = PositionEmbedding(max_sequence_length, hidden_dim, positions, name="encoder_positions")
        self.decoder_positions = PositionEmbedding(max_sequence_length, hidden_dim, positions, name="decoder_positions")
        self.encoder_dropout = Dropout(dropout, name="encoder_dropout")
        self.decoder_dropout = Dropout(dropout, name="decoder_dropout")
        self.encoder_blocks = [TransformerBlock(**block, name=f"encoder_layer_{i}") for i in range(num_layers)]
        self.decoder_blocks = [
            TransformerBlock(**block, has_context=True, name=f"decoder_layer_{i}") for i in range(num_layers)
        ]
        # Post-norm blocks end normalized; pre-norm ones leave it to one last layer.
        self.encoder_norm = LayerNormalization(name="encoder_norm") if normalization == "pre" else None
        self.decoder_norm = LayerNormalization(name="decoder_norm") if normalization == "pre" else None
        self._build_parts((None, None, hidden_dim))

    def _build_parts(self, shape: tuple) -> None:
        """Makes all variables now, so that weights can be loaded and counted before the first call."""
        norms = [norm for norm in (self.encoder_norm, self.decoder_norm) if norm is not None]
        for layer in (*self.encoder_blocks, *self.decoder_blocks, *norms):
            layer.build(shape)
        self.built = True

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Logits of every next token.

        Args:
            inputs: `encoder_token_ids` int32 [B, S] and `decoder_token_ids` int32 [B, T], 0 at padding.

        Returns:
            [B, T, V]; position t is the prediction of token t + 1.
        """
        encoded, encoder_mask = self.encode(inputs["encoder_token_ids"], training=training)
        contexts = self.project_contexts(encoded)
        hidden, _ = self.decode(inputs["decoder_token_ids"], contexts, encoder_mask, training=training)
        return self.embedding.logits(hidden)

    def encode(self, token_ids: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """token_ids: int32 [B, S], 0 at padding -> hidden vectors [B, S, D], attention mask bool [B, 1, 1, S]."""
        mask = padding_attention_mask(token_ids != 0)
        x = self.embedding(token_ids) + self.encoder_positions(tf.range(tf.shape(token_ids)[1]))  # [B, S, D]
        x = self.encoder_dropout(x, training=training)
        for block in self.encoder_blocks:
            x, _ = block(x, attention_mask=mask, training=training)
        return (x if self.encoder_norm is None else self.encoder_norm(x)), mask

    def project_contexts(self, encoded: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """encoded: [B, S, D] -> for each decoder block the keys and values [B, H, S, K] that it attends to."""
        return [block.cross_attention.project_context(encoded) for block in self.decoder_blocks]

    def empty_caches(self, batch_size: tf.Tensor, slots: tf.Tensor | int) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """For each decoder block the keys and values [B, H, slots, K] of no token yet."""
        return [block.self_attention.empty_cache(batch_size, slots) for block in self.decoder_blocks]

    def decode(
        self, token_ids, contexts, encoder_mask, mask=None, positions=None, caches=None, slot=None, training=False
    ):
        """Hidden vectors of target tokens.

        Without the last four arguments the tokens are one sequence from position 0 on. With them they are whatever
        the mask makes of them: the next token of each hypothesis of a beam, say, all at the same position.

        Args:
            token_ids: int32 [B, T].
            contexts: from `project_contexts`.
            encoder_mask: bool [B, 1, 1, S].
            mask: what each token sees, bool that broadcasts to [B, H, T, slots]; causal by default.
            positions: int32 [T]; 0 to T - 1 by default.
            caches: from `empty_caches`, one per block.
            slot: int32 scalar, the first of the T slots of the caches that the tokens are written to.

        Returns:
            [B, T, D], and the caches with these tokens in them.
        """
        length = tf.shape(token_ids)[1]
        mask = causal_mask(length) if mask is None else mask
        positions = tf.range(length) if positions is None else positions
        x = self.embedding(token_ids) + self.decoder_positions(positions)  # [B, T, D]
        x = self.decoder_dropout(x, training=training)
        written = []
        for block, context, cache in zip(self.decoder_blocks, contexts, caches or [None] * len(contexts), strict=True):
            x, cache = block(x, mask, context, encoder_mask, cache=cache, slot=slot, training=training)
            written.append(cache)
        return (x if self.decoder_norm is None else self.decoder_norm(x)), written

    def begin_decoding(self, encoder_token_ids: tf.Tensor):
        """Reads the source once, and gives what `generation.beam.beam_search` needs to write the target.

        Args:
            encoder_token_ids: int32 [B, S], 0 at padding.

        Returns:
            The step function of a search, and the function that makes its empty caches.
        """
        encoded, encoder_mask = self.encode(encoder_token_ids)
        contexts = self.project_contexts(encoded)

        def step(token_ids, mask, position, slot, caches):
            hidden, caches = self.decode(
                token_ids, contexts, encoder_mask, mask, positions=position[tf.newaxis], caches=caches, slot=slot
            )
            return self.embedding.logits(hidden), caches

        return step, partial(self.empty_caches, tf.shape(encoded)[0])
