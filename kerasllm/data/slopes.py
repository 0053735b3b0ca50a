"""A built-in set that tilts a surface: pairs of slopes that add up to zero, for noisy gradients of known size.

    {"slope_x": "-512", "slope_y": "87"}

In thousandths, drawn from the normal distribution with standard deviation 1. Each pair comes with its opposite, so
that the sum over a split is zero; where the number is odd, one pair is 0 0.
"""

import random
from collections.abc import Iterator


def generate_slopes(split: str, num_records: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield records with `slope_x` and `slope_y`, always the same ones for (split, number, seed)."""
    generator = random.Random(f"slopes/{split}/{seed}")
    for _ in range(num_records // 2):
        x, y = (round(1000 * generator.gauss(0.0, 1.0)) for _ in range(2))
        yield {"slope_x": str(x), "slope_y": str(y)}
        yield {"slope_x": str(-x), "slope_y": str(-y)}
    if num_records % 2:
        yield {"slope_x": "0", "slope_y": "0"}
