"""Which variables a way of adapting trains: a question of their paths alone. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kerasllm.errors import UserError
from kerasllm.training.variable_paths import BLOCK, matches_of
from kerasllm.tuning.settings import AdapterSettings, OnlySettings, TopLayersSettings, TuningSettings

FRONT = re.compile(r"^(\w+_)?(embedding|positions|segments)(_\w+)?/")
"""What comes before all blocks."""
POOLER = re.compile(r"^pooler/")


def trained_variables(settings: TuningSettings, paths: Sequence[str]) -> set[str]:
    """The paths of those that are trained; what an adapter adds is not among them.

    Args:
        paths: of the variables of the model with its heads, in the order in which it uses its blocks.

    Raises:
        UserError: a setting does not fit the model; it begins with the key.
    """
    if isinstance(settings, OnlySettings):
        try:
            found = matches_of(settings.variables, paths)
        except UserError as error:
            raise UserError(f"variables: {error}") from error
        return {path for path, matches in zip(paths, found, strict=True) if matches}
    if isinstance(settings, TopLayersSettings):
        return {*_after_blocks(paths), *_in_last_blocks(settings.num_layers, paths)}
    if isinstance(settings, AdapterSettings):
        after = _after_blocks(paths)
        return {path for path in after if settings.train_pooler is not False or not POOLER.match(path)}
    return set(paths)


def _after_blocks(paths: Sequence[str]) -> list[str]:
    """Those of the pooler, the heads and last norms."""
    return [path for path in paths if not BLOCK.match(path) and not FRONT.match(path)]


def _in_last_blocks(num_layers: int, paths: Sequence[str]) -> list[str]:
    blocks = {path: match[0] for path in paths if (match := BLOCK.match(path))}
    in_order = list(dict.fromkeys(blocks.values()))
    if not in_order:
        raise UserError("name: no variable of this model lies in a numbered block, such as layer_0/; take only")
    if num_layers > len(in_order):
        raise UserError(f"num_layers: {num_layers} is more than the {len(in_order)} blocks of the model; lower it")
    chosen = in_order[len(in_order) - num_layers :]
    return [path for path, block in blocks.items() if block in chosen]
