"""A point on a surface: the smallest model there is, to see how an optimizer walks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Landscape:
    """A surface of two numbers.

    Attributes:
        height: `height(x, y)`, of numbers, arrays or tensors.
        start: where the walk begins.
        minima: the lowest points; none where there is no bottom.
        window: least and greatest x, least and greatest y of what is worth a look.
    """

    height: Callable[[Any, Any], Any]
    start: tuple[float, float]
    minima: tuple[tuple[float, float], ...]
    window: tuple[float, float, float, float]


LANDSCAPES = {
    "valley": Landscape(lambda x, y: 0.5 * (x**2 + 25.0 * y**2), (-2.0, 1.0), ((0.0, 0.0),), (-2.5, 1.0, -1.5, 1.5)),
    "rosenbrock": Landscape(
        lambda x, y: (1.0 - x) ** 2 + 100.0 * (y - x**2) ** 2, (-1.2, 1.0), ((1.0, 1.0),), (-1.8, 1.8, -0.8, 2.4)
    ),
    "beale": Landscape(
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        (1.0, 1.5),
        ((3.0, 0.5),),
        (-0.5, 4.2, -1.2, 2.0),
    ),
    "saddle": Landscape(
        lambda x, y: x**2 - y**2 + 0.25 * y**4,
        (-1.5, 0.01),
        ((0.0, 2**0.5), (0.0, -(2**0.5))),
        (-2.0, 2.0, -2.0, 2.0),
    ),
}


class Surface(keras.Model):
    r"""The height of a surface at a position, which is all that is trained.

    $$\ell_i(p) = f(p) + s\, n_i \cdot p$$

    Each example i tilts the surface by its slope n_i. The slopes of a whole split add up to zero, so the batch of all
    examples has the gradient of f itself, and a smaller batch a noisy one: batch, mini-batch and stochastic gradient
    descent differ in `batching.global_batch_size` alone.

    - `valley`: $(x^2 + 25 y^2) / 2$, a long quadratic valley.
    - `rosenbrock`: $(1 - x)^2 + 100 (y - x^2)^2$, a bent one.
    - `beale`: $(1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2$, flat with sharp peaks.
    - `saddle`: $x^2 - y^2 + y^4 / 4$, with two minima beside a saddle point at 0.

    Args:
        landscape: one of these.
        noise: s, standard deviation of the tilt of one example, in height per unit of distance.

    Reference: [Rosenbrock, 1960](https://doi.org/10.1093/comjnl/3.3.175);
    [Beale, 1958](https://apps.dtic.mil/sti/citations/AD0210604).
    """

    def __init__(self, landscape: str = "valley", noise: float = 0.0):
        super().__init__()
        self.landscape, self.noise = LANDSCAPES[landscape], noise
        start = keras.initializers.Constant(self.landscape.start)
        self.position = self.add_weight(shape=(2,), initializer=start, name="position")
        self.built = True

    def call(self, slope, training: bool = False):
        """Heights [B, 1] of the surface that each slope [B, 2], in thousandths, has tilted."""
        tilt = tf.linalg.matvec(tf.cast(slope, self.compute_dtype) / 1000.0, self.position.value)  # [B]
        return (self.landscape.height(*tf.unstack(self.position.value)) + self.noise * tilt)[:, None]
