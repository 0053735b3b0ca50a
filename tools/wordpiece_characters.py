"""Writes kerasllm/data/wordpiece_characters.npz: what BERT's published tokenizers do with each character.

    python tools/wordpiece_characters.py

Their Unicode tables are of several versions, none of them Python's or TensorFlow's, so each character is asked for.
Needs the package `tokenizers`; `tests/data/test_wordpiece.py` compares the file with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
OFF = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
PATH = Path(__file__).resolve().parent.parent / "kerasllm" / "data" / "wordpiece_characters.npz"


def characters_where(condition: Callable[[str], bool]) -> np.ndarray:
    """int32 [N, 2]: the first and the last code of each run of characters for which the condition holds."""
    codes = np.array([ord(character) for character in CHARACTERS if condition(character)])
    breaks = np.flatnonzero(np.diff(codes) > 1)
    return np.stack([codes[np.r_[0, breaks + 1]], codes[np.r_[breaks, -1]]], axis=1).astype("int32")


def rewritten(rewrite: Callable[[str], str]) -> dict[str, np.ndarray]:
    """The codes of the characters that become other ones; how many each becomes, and which, one after the other."""
    pairs = [(character, rewrite(character)) for character in CHARACTERS]
    pairs = [(character, text) for character, text in pairs if text != character]
    return {
        "codes": np.array([ord(character) for character, _ in pairs], "int32"),
        "counts": np.array([len(text) for _, text in pairs], "int8"),
        "texts": np.array([ord(each) for _, text in pairs for each in text], "int32"),
    }


def ask() -> dict[str, np.ndarray]:
    """All tables, by name."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    clean = BertNormalizer(**{**OFF, "clean_text": True}).normalize_str
    chinese = BertNormalizer(**{**OFF, "handle_chinese_chars": True}).normalize_str
    split = BertPreTokenizer().pre_tokenize_str
    tables = {
        "removed": characters_where(lambda character: clean(character) == ""),
        "space": characters_where(lambda character: clean(character) == " "),
        "chinese": characters_where(lambda character: chinese(character) != character),
        "punctuation": characters_where(lambda character: len(split(f"a{character}a")) == 3),
    }
    for name in ("strip_accents", "lowercase"):
        rewrite = BertNormalizer(**{**OFF, name: True}).normalize_str
        tables |= {f"{name}_{part}": values for part, values in rewritten(rewrite).items()}
    return tables


if __name__ == "__main__":
    np.savez_compressed(PATH, **ask())
    print(f"{PATH}: {PATH.stat().st_size:,} bytes")
