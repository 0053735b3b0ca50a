"""Multi-head attention, and the masks and the cache that go with it. A mask is True where a position may be seen."""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasllm.layers.dropout import Dropout
from kerasllm.layers.projection import Projection, truncated_normal

FORBIDDEN_PENALTY = 1e9


def causal_mask(length: tf.Tensor | int) -> tf.Tensor:
    """bool [1, 1, T, T]: position i sees the positions up to i."""
    return tf.linalg.band_part(tf.ones([1, 1, length, length], tf.bool), -1, 0)


def padding_attention_mask(padding_mask: tf.Tensor) -> tf.Tensor:
    """bool [B, S], True at tokens -> bool [B, 1, 1, S], for every head and every query."""
    return padding_mask[:, tf.newaxis, tf.newaxis, :]


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: tf.Tensor | None, dropout=None) -> tf.Tensor:
    r"""$\text{softmax}(q k^\top / \sqrt{K})\, v$, where the mask allows.

    Args:
        query: [B, H, T, K]; key, value: [B, H, S, K].
        mask: bool that broadcasts to [B, H, T, S], or None where everything may be seen.
        dropout: function of the attention probabilities, or None.

    Returns:
        [B, H, T, K]
    """
    # The queries are scaled, and not the scores, and the mask is subtracted: TensorFlow would fuse a product with a
    # scaling, or with something added, to an operation that is slower on CPU than the two.
    scores = tf.matmul(query * query.shape[-1] ** -0.5, key, transpose_b=True)  # [B, H, T, S]
    probabilities = masked_softmax(scores, mask)
    if dropout is not None:
        probabilities = dropout(probabilities)
    return tf.matmul(probabilities, value)


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """scores: [B, H, T, S] -> probabilities of the same type, 0 where the mask, which broadcasts to them, is False."""
    exact = tf.cast(scores, tf.float32)  # sums of exponentials need its digits in mixed precision too
    if mask is not None:
        exact -= tf.where(mask, 0.0, FORBIDDEN_PENALTY)
    return tf.cast(tf.nn.softmax(exact), scores.dtype)


class Heads:
    """Splits the last axis into heads, and joins them again."""

    def __init__(self, num_heads: int, hidden_dim: int):
        if hidden_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide hidden_dim {hidden_dim}")
        self.num_heads, self.key_dim, self.hidden_dim = num_heads, hidden_dim // num_heads, hidden_dim

    def split(self, x: tf.Tensor, parts: int) -> list[tf.Tensor]:
        """[B, T, parts * D] -> `parts` tensors [B, H, T, K]."""
        batch, length = tf.shape(x)[0], tf.shape(x)[1]
        x = tf.reshape(x, [batch, length, parts, self.num_heads, self.key_dim])
        return tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]), num=parts)

    def join(self, x: tf.Tensor) -> tf.Tensor:
        """[B, H, T, K] -> [B, T, D]."""
        shape = tf.shape(x)
        return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [shape[0], shape[2], self.hidden_dim])


class SelfAttention(keras.layers.Layer):
    r"""Attention of a sequence to itself; one product makes queries, keys and values.

    Args:
        num_heads: H.
        hidden_dim: D = H * K, size of input and result.
        dropout: rate applied to the attention probabilities.
        initializer_stddev: of the weights; None for Glorot's.

    Attributes:
        prefix: None, or the function of key, value and mask that puts further ones in front of them.

    Raises:
        ValueError: `num_heads` does not divide `hidden_dim`.

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.2.
    """

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        dropout: float = 0.0,
        initializer_stddev: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.heads = Heads(num_heads, hidden_dim)
        initializer = truncated_normal(initializer_stddev)
        if initializer_stddev is None:
            # Glorot's limit belongs to each of the three D x D matrices, and not to the fused D x 3D one.
            limit = (3.0 / hidden_dim) ** 0.5
            initializer = keras.initializers.RandomUniform(-limit, limit)
        self.query_key_value = Projection(
            3 * hidden_dim, kernel_initializer=initializer, parts=("query", "key", "value"), name="query_key_value"
        )
        self.prefix = None
        self.dropout = Dropout(dropout, name="dropout")
        output_initializer = truncated_normal(initializer_stddev)
        self.output_projection = Projection(hidden_dim, kernel_initializer=output_initializer, name="output")

    def build(self, input_shape):
        self.query_key_value.build(input_shape)
        self.output_projection.build(input_shape)

    def call(self, x, attention_mask=None, cache=None, slot=None, wanted=None, training: bool = False):
        """Lets every position of x see the positions that the mask allows.

        Args:
            x: [B, T, D].
            attention_mask: bool that broadcasts to [B, H, T, T], or to [B, H, T, slots] with a cache.
            cache: None, or keys and values [B, H, slots, K] of tokens before, from `empty_cache`.
            slot: int32 scalar, the first of the T slots of the cache that x is written to.
            wanted: int32 [B, P], the positions of x that look at the others, where not all do; the mask must then be
                the same for all of them.

        Returns:
            [B, T, D], or [B, P, D] of those positions, and the cache with x in it (None without a cache).
        """
        is_plain = cache is None and self.prefix is None and self.query_key_value.adapter is None
        if wanted is not None and is_plain:
            return self.output_projection(self.look_from(x, attention_mask, wanted, training)), None
        query, key, value = self.heads.split(self.query_key_value(x), 3)  # 3 x [B, H, T, K]
        if wanted is not None:
            query = tf.transpose(tf.gather(tf.transpose(query, [0, 2, 1, 3]), wanted, batch_dims=1), [0, 2, 1, 3])
        if cache is not None:
            cache = (write_to_cache(cache[0], key, slot), write_to_cache(cache[1], value, slot))
            key, value = cache
        if self.prefix is not None:
            key, value, attention_mask = self.prefix(key, value, attention_mask)
        attended = attend(query, key, value, attention_mask, lambda p: self.dropout(p, training=training))
        return self.output_projection(self.heads.join(attended)), cache

    def look_from(self, x: tf.Tensor, mask: tf.Tensor | None, wanted: tf.Tensor, training: bool) -> tf.Tensor:
        r"""What the wanted positions of x see, without keys and values of all the others: less work where P is small.

        The products with the kernels of key and value are moved to where only P positions are: with queries q and
        attention probabilities p,
        $$q \cdot (W_k x_j + b_k) = (W_k^\top q) \cdot x_j + q \cdot b_k, \quad
        \sum_j p_j (W_v x_j + b_v) = W_v \sum_j p_j x_j + b_v \sum_j p_j$$
        where softmax takes no notice of $q \cdot b_k$, which is the same for all j.

        Args:
            x: [B, T, D].
            mask: bool that broadcasts to [B, H, P, T], or None.
            wanted: int32 [B, P].

        Returns:
            [B, P, D], before the projection of the output.
        """
        heads, (batch, places) = self.heads, tf.unstack(tf.shape(wanted))
        projection = self.query_key_value
        shape = [3, heads.num_heads, heads.key_dim, heads.hidden_dim]
        to_query, to_key, to_value = tf.unstack(tf.reshape(tf.convert_to_tensor(projection.kernel), shape))
        query_bias, _, value_bias = tf.unstack(tf.reshape(tf.convert_to_tensor(projection.bias), shape[:3]))
        looking = tf.gather(x, wanted, batch_dims=1)  # [B, P, D]
        query = tf.einsum("bpd,hkd->bhpk", looking, to_query) + query_bias[:, tf.newaxis]
        asked = tf.einsum("bhpk,hkd->bhpd", query * heads.key_dim**-0.5, to_key)
        rows = tf.reshape(asked, [batch, heads.num_heads * places, heads.hidden_dim])
        scores = tf.reshape(tf.matmul(rows, x, transpose_b=True), [batch, heads.num_heads, places, -1])
        probabilities = self.dropout(masked_softmax(scores, mask), training=training)  # [B, H, P, T]
        rows = tf.reshape(probabilities, [batch, heads.num_heads * places, -1])
        mixed = tf.reshape(tf.matmul(rows, x), tf.shape(asked))  # [B, H, P, D]
        value = tf.einsum("bhpd,hkd->bhpk", mixed, to_value)
        return heads.join(value + tf.reduce_sum(probabilities, -1, keepdims=True) * value_bias[:, tf.newaxis])

    def empty_cache(self, batch_size: tf.Tensor, slots: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        """Keys and values of nothing yet: two tensors of zeros [B, H, slots, K], which are written to in place.

        Two `tf.zeros` could become one constant, shared and kept from call to call; `Empty` is a new one each time.
        """
        shape = [batch_size, self.heads.num_heads, slots, self.heads.key_dim]
        key, value = (tf.raw_ops.Empty(shape=shape, dtype=self.compute_dtype, init=True) for _ in range(2))
        for cache in (key, value):
            cache.set_shape([None, self.heads.num_heads, None, self.heads.key_dim])
        return key, value


class CrossAttention(keras.layers.Layer):
    r"""Attention of a sequence to a context; the keys and values of the context can be made once and kept.

    Arguments but for `initializer_stddev`, errors and reference as in `SelfAttention`.
    """

    def __init__(self, num_heads: int, hidden_dim: int, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.heads = Heads(num_heads, hidden_dim)
        limit = (3.0 / hidden_dim) ** 0.5
        self.query = Projection(hidden_dim, name="query")
        self.key_value = Projection(
            2 * hidden_dim,
            kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
            parts=("key", "value"),
            name="key_value",
        )
        self.dropout = Dropout(dropout, name="dropout")
        self.output_projection = Projection(hidden_dim, name="output")

    def build(self, input_shape):
        for projection in (self.query, self.key_value, self.output_projection):
            projection.build(input_shape)

    def project_context(self, context: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """context: [B, S, D] -> keys and values, each [B, H, S, K]."""
        key, value = self.heads.split(self.key_value(context), 2)
        return key, value

    def call(self, x, keys_and_values, attention_mask=None, training: bool = False):
        """x: [B, T, D], keys_and_values: two tensors [B, H, S, K] -> [B, T, D]."""
        (query,) = self.heads.split(self.query(x), 1)  # [B, H, T, K]
        key, value = keys_and_values
        attended = attend(query, key, value, attention_mask, lambda p: self.dropout(p, training=training))
        return self.output_projection(self.heads.join(attended))


def write_to_cache(cache: tf.Tensor, new: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    """Puts `new` [B, H, T, K] into the T slots of `cache` [B, H, slots, K] from `slot` on, in place.

    T must divide `slot` and the number of slots: the cache is seen as rows of T slots, one of which is replaced for
    each head. `tf.tensor_scatter_nd_update` would copy the whole cache each time, which is half the work of a step.
    """
    batch, heads, slots, key_dim = tf.unstack(tf.shape(cache))
    length = tf.shape(new)[2]
    rows = tf.range(batch * heads) * (slots // length) + slot // length  # [B * H]
    flat = tf.reshape(cache, [-1, length * key_dim])
    flat = tf.raw_ops.InplaceUpdate(x=flat, i=rows, v=tf.reshape(new, [-1, length * key_dim]))
    written = tf.reshape(flat, [batch, heads, slots, key_dim])
    written.set_shape(cache.shape)
    return written
