"""What the path of a variable, such as `encoder_layer_3/feed_forward/expand/kernel`, says about it. Pure functions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from kerasllm.errors import UserError

BIAS_OR_NORM = re.compile(r"(?:^|[/_])(?:bias|scale|offset|gamma|beta)$")
BLOCK = re.compile(r"((?:^|.*?/)(?:\w+_)?layer)_(\d+)/")
EMBEDDING = re.compile(r"embedding|positions|table$")


def is_bias_or_norm(path: str) -> bool:
    """Whether it is a bias, or the scale or offset of a normalization: what weight decay and penalties leave alone."""
    return BIAS_OR_NORM.search(path) is not None


def matches_of(pattern: str, paths: Sequence[str], what: str = "variable") -> list[bool]:
    """For each path whether a regular expression is found in it.

    Args:
        what: has such a path.

    Raises:
        UserError: it is found in none; the nearest paths, or beginnings of them, are named.
    """
    found = [re.search(pattern, path) is not None for path in paths]
    if not any(found):
        parts = [path.split("/") for path in paths]
        names = dict.fromkeys("/".join(each[:length]) for each in parts for length in range(1, len(each) + 1))
        nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
        hint = f"the nearest are {', '.join(nearest)}" if nearest else "the model has none"
        raise UserError(f"'{pattern}' matches no {what}; {hint}")
    return found


def layer_decay_factors(paths: Sequence[str], layer_decay: float) -> list[float]:
    """Learning rates that fall from the last block of a model to its first.

    A block is numbered in the path: `layer_5/...`, `encoder_layer_0/...`; those of one prefix are one stack, of n.
    Block i has the factor layer_decay ** (n - i), and what comes before all blocks, embeddings, the one of a block -1
    of the deepest stack. What comes after them, such as heads and last norms, has 1.

    Raises:
        UserError: there is no numbered block.

    Reference: [Clark et al., 2020](https://arxiv.org/abs/2003.10555), appendix A.
    """
    blocks = [BLOCK.match(path) for path in paths]
    sizes: dict[str, int] = {}
    for block in filter(None, blocks):
        sizes[block[1]] = max(sizes.get(block[1], 0), int(block[2]) + 1)
    if not sizes:
        raise UserError("no variable of this model lies in a numbered block, such as layer_0/; leave it out")
    below_all = layer_decay ** (max(sizes.values()) + 1)
    outside = [below_all if EMBEDDING.search(path) else 1.0 for path in paths]
    return [
        layer_decay ** (sizes[block[1]] - int(block[2])) if block else factor
        for block, factor in zip(blocks, outside, strict=True)
    ]


def frozen_weights(model: Any) -> list[Any]:
    """The weights of a Keras model that were made to be trained and are not, in contrast to statistics and gates."""
    return [weight for weight in model.weights if weight.value.trainable and not weight.trainable]
