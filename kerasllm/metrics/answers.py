"""How good answers are that stand in a text: exact match and F1, as the official script of SQuAD 2.0 has them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

CHINESE_PUNCTUATION = "，。、；：？！…—·～“”‘’（）《》〈〉「」『』【】〔〕"
"""What else is left out where the right answer has Chinese or Japanese characters."""
ARTICLE = re.compile(r"\b(a|an|the)\b")
CJK = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def normalized(text: str, as_cjk: bool = False) -> str:
    """In lower case, without punctuation and articles, with single spaces."""
    left_out = string.punctuation + (CHINESE_PUNCTUATION if as_cjk else "")
    return " ".join(ARTICLE.sub(" ", text.lower().translate(dict.fromkeys(map(ord, left_out)))).split())


def words_of(text: str, as_cjk: bool) -> list[str]:
    """The words of a text once it is normalised; each Chinese or Japanese character may be one, as in CMRC 2018."""
    text = normalized(text, as_cjk)
    return (CJK.sub(r" \1 ", text) if as_cjk else text).split()


def exact_match(given: str, wanted: str) -> float:
    """1 if both are the same when normalised, else 0."""
    as_cjk = bool(CJK.search(wanted))
    return float(normalized(given, as_cjk) == normalized(wanted, as_cjk))


def f1(given: str, wanted: str) -> float:
    """Harmonic mean of precision and recall of the words; where one text has none, whether the other has none too."""
    as_cjk = bool(CJK.search(wanted))
    words, wanted_words = words_of(given, as_cjk), words_of(wanted, as_cjk)
    if not words or not wanted_words:
        return float(words == wanted_words)
    same = (Counter(words) & Counter(wanted_words)).total()
    return 2 * same / (len(words) + len(wanted_words))


def answer_metrics(given: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means over all questions.

    Args:
        given: an answer to each, "" for none.
        wanted: right answers to each, of which the one that fits best counts; without any, none is right.

    Returns:
        `exact_match` and `f1`, 0 to 1.

    Reference: [Rajpurkar et al., 2018](https://arxiv.org/abs/1806.03822).
    """

    def mean(measure: Callable[[str, str], float]) -> float:
        scores = [
            max(measure(answer, each) for each in [r for r in references if normalized(r)] or [""])
            for answer, references in zip(given, wanted, strict=True)
        ]
        return sum(scores) / max(1, len(scores))

    return {"exact_match": mean(exact_match), "f1": mean(f1)}
