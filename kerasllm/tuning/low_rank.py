"""LoRA: what is learnt of a kernel is a product of two thin matrices that is added to it."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasllm.layers.dropout import Dropout
from kerasllm.layers.projection import Projection, inner_product, product


class LowRank(keras.layers.Layer):
    r"""Takes the place of the product of a projection with its kernel, which is frozen.

    $$y = x\, (W + \tfrac{\alpha}{r} B A)^\top$$

    W [units, inputs] is the kernel; A [r, inputs], `down`, begins at random and B [units, r], `up`, at 0, so that at
    first it is the plain product, to the bit. Where W consists of several parts, as that of queries, keys and values
    does, each part that is adapted has an A and a B of its own, and the others stay what they are.

    The sum is made first, so that one product does the work of two; the gradients of A and B are taken without that of
    the sum.

    Args:
        projection: built; its `adapter` is to be this layer.
        parts: the places of the parts that are adapted, [0] where it has none.
        rank: r.
        alpha: the addition counts alpha / r times.
        dropout: rate applied to x on its way into the addition; above 0 that is a product of its own in training.

    Reference: [Hu et al., 2021](https://arxiv.org/abs/2106.09685), section 4.1; A begins as in the authors' code.
    """

    def __init__(
        self, projection: Projection, parts: Sequence[int], rank: int, alpha: float, dropout: float = 0.0, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)  # the sum of W and the addition needs the digits of float32
        self.projection = lambda: projection  # in a function, or its variables would be those of this layer as well
        self.places, self.rank, self.scale = tuple(parts), rank, alpha / rank
        names, (self.units, inputs) = projection.parts or ("",), projection.kernel.shape
        self.part_units = self.units // len(names)
        self.dropout = Dropout(dropout, name="dropout")
        self.down, self.up = [], []
        for place in self.places:
            name = f"{names[place]}_" if names[place] else ""
            initializer = keras.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5)
            self.down.append(self.add_weight(name=f"{name}down", shape=(rank, inputs), initializer=initializer))
            self.up.append(self.add_weight(name=f"{name}up", shape=(self.part_units, rank), initializer="zeros"))
        self.built = True

    def factors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """B [units, parts * r], times alpha / r, with zeros where a part meets the A of another, and A
        [parts * r, inputs]; float32."""
        size, total = self.part_units, len(self.places) * self.rank
        columns = []
        for index, (place, up) in enumerate(zip(self.places, self.up, strict=True)):
            above, left = place * size, index * self.rank
            around = [[above, self.units - above - size], [left, total - left - self.rank]]
            columns.append(tf.pad(tf.convert_to_tensor(up), around))
        return self.scale * tf.add_n(columns), tf.concat([tf.convert_to_tensor(down) for down in self.down], axis=0)

    def merged_kernel(self) -> tf.Tensor:
        """The kernel with the addition, [units, inputs]."""
        return tf.convert_to_tensor(self.projection().kernel) + tf.matmul(*self.factors())

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """x: [N, inputs] -> [N, units]."""
        up, down = self.factors()
        kernel = tf.convert_to_tensor(self.projection().kernel)
        if not training or not self.dropout.dropped_levels:
            return adapted_product(x, kernel, up, down)
        up, down, kernel = (tf.cast(each, x.dtype) for each in (up, down, kernel))
        inside = product(self.dropout(x, training=training), down)  # [N, parts * r]
        return product(x, kernel, trains_kernel=False) + product(inside, up)


def adapted_product(x: tf.Tensor, kernel: tf.Tensor, up: tf.Tensor, down: tf.Tensor) -> tf.Tensor:
    r"""$y = x\, (W + B A)^\top$, with gradients of x, B and A that cost one large product and four thin ones.

    $$\partial x = \partial y\, (W + B A), \quad \partial B = \partial y^\top (x A^\top), \quad
    \partial A = (\partial y\, B)^\top x$$

    Args:
        x: [N, inputs].
        kernel: W, float32 [units, inputs], which gets no gradient.
        up: B, float32 [units, R].
        down: A, float32 [R, inputs].

    Returns:
        [N, units], of the type of x.
    """

    @tf.custom_gradient
    def multiplied(x, up, down):
        merged = tf.cast(kernel + tf.matmul(up, down), x.dtype)

        def backward(upstream):
            low_up, low_down = tf.cast(up, x.dtype), tf.cast(down, x.dtype)
            up_gradient = inner_product(upstream, tf.matmul(x, low_down, transpose_b=True))
            down_gradient = inner_product(tf.matmul(upstream, low_up), x)
            # Side by side they would take the cache from each other; and that of x, which comes last, is left out of
            # a graph where nothing below is trained.
            with tf.control_dependencies([up_gradient, down_gradient]):
                x_gradient = tf.matmul(upstream, merged)
            return x_gradient, tf.cast(up_gradient, up.dtype), tf.cast(down_gradient, down.dtype)

        return tf.matmul(x, merged, transpose_b=True), backward

    return multiplied(x, up, down)
