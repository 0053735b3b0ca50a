"""What the recipes share that `kerasllm new` writes: shares, sizes, and the section of the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SHARES = {"validation": 0.1, "test": 0.1}
BATCH_SIZE = 32
AIMED_STEPS = 1500
EPOCHS = range(3, 41)
LENGTHS = range(32, 257, 32)
"""Shorter than the longest texts of some files, which take long to learn from."""
MANY_RECORDS = 20_000
FROM_SCRATCH = """\
tokenizer: {{kind: {tokenizer}, max_vocabulary_size: 8000, lowercase: true}}

# A larger model learns more from more records, and takes longer. Lengths are in tokens, the pieces of words.
model:
  num_layers: {num_layers}
  num_heads: 4
  hidden_dim: {hidden_dim}
  intermediate_dim: {intermediate_dim}
  max_sequence_length: {length}
"""
PRETRAINED = """\
# Its numbers and its vocabulary are those of the published weights.
model: {{pretrained: {source}}}
"""
PRETRAINED_EPOCHS, PRETRAINED_RATE = 3, 0.00005
"""As Devlin et al. (2018), A.3, fine-tune."""


def describe_model(pretrained: str | None, is_large: bool, length: int, tokenizer: str = "subwords") -> str:
    """The sections of the recipe that say what is trained."""
    if pretrained:
        return describe_pretrained(pretrained)
    width, intermediate_dim, num_layers = (256, 1024, 4) if is_large else (128, 256, 2)
    return FROM_SCRATCH.format(
        tokenizer=tokenizer,
        num_layers=num_layers,
        hidden_dim=width,
        intermediate_dim=intermediate_dim,
        length=length,
    )


def describe_pretrained(source: str) -> str:
    """The section `model` that begins with trained weights."""
    return PRETRAINED.format(source=name_source(source))


def name_source(pretrained: str) -> str:
    """How a recipe names trained weights."""
    # Where a data directory is set, a path that is relative would be taken to lie in there.
    is_moved = os.environ.get("KERASLLM_DATA") and Path(pretrained).exists()
    return as_yaml(str(Path(pretrained).resolve()) if is_moved else pretrained)


def name_file(file: Path) -> str:
    """How a recipe names a file: where a data directory is set, a path that is relative would be taken to lie in it."""
    return as_yaml(str(file.resolve() if os.environ.get("KERASLLM_DATA") else file))


def length_for(characters: list[int]) -> int:
    """Tokens that are enough for 99 of 100 texts of so many characters: none has more tokens than characters."""
    longest = sorted(characters)[len(characters) * 99 // 100]
    return clip(-(-(longest + 3) // 32) * 32, LENGTHS)


def clip(number: int, bounds: range) -> int:
    """The nearest of the bounds' numbers from the first to the last."""
    return min(max(number, bounds[0]), bounds[-1])


def as_yaml(value: Any) -> str:
    """JSON, which is YAML as well; the keys of a dict, which are names of settings, without quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_yaml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
