"""Random sentence pairs in the shape of Multi30k, and its recipe on them: what the engine's benchmarks train on."""

from __future__ import annotations

import random
from pathlib import Path

RECIPE = "translate/multi30k_small"
OVERRIDES = [
    "data={source: parallel_text, train: {source: a.txt, target: b.txt}, validation: {source: c.txt, target: d.txt}}",
    "tokenizer={kind: words, max_vocabulary_size: 8000}",
    "training.schedule={name: constant}",
]
NUM_WORDS, MEAN_LENGTH, NUM_VALIDATION = 9_000, 13, 20


def write_pairs(folder: Path, count: int) -> None:
    """Writes the files that the overrides name: lines of 4 to 40 random words, `count` of them to train on."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(4, 9))) for _ in range(NUM_WORDS)]
    for name, lines in {"a": count, "b": count, "c": NUM_VALIDATION, "d": NUM_VALIDATION}.items():
        lengths = [min(max(round(draw.gauss(MEAN_LENGTH, 4)), 4), 40) for _ in range(lines)]
        text = "".join(" ".join(draw.choices(words, k=length)) + "\n" for length in lengths)
        (folder / f"{name}.txt").write_text(text, "utf-8")
