"""Documents, cut into sequences that are as full as can be: stretches, or pairs of them that follow each other or not.

Everything follows from the documents alone, so that runs with several seeds learn from the same sequences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from kerasllm.data.draws import mix

FOLLOWS, FOLLOWS_NOT = 0, 1
"""Classes of next sentence prediction, as published heads have them."""
TRIES = 10
"""Places in other documents that are looked at for one from which enough text follows."""
# After a mark that ends a sentence, where a capital, a digit or another script begins; Chinese marks need no space.
_SENTENCE_END = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))\s+(?=[\"'“‘(\[]*[^\Wa-z_])|(?<=[。！？])")


class Pair(NamedTuple):
    """Two stretches of token ids, int32 [N] each."""

    first: np.ndarray
    second: np.ndarray
    label: int
    """`FOLLOWS` or `FOLLOWS_NOT`."""
    document: int
    """That the first one is from."""


def split_sentences(document: str) -> list[str]:
    r"""The sentences of a document, whose paragraphs end with "\n". Only boundaries depend on it: a rule will do.

    >>> split_sentences("A title\nOne, e.g. this. Two! (Three.)")
    ['A title', 'One, e.g. this.', 'Two!', '(Three.)']
    """
    parts = (part for paragraph in document.split("\n") for part in _SENTENCE_END.split(paragraph))
    return [part for part in map(str.strip, parts) if part]


def document_key(document: str) -> int:
    """64 bits that what is drawn for a document follows from."""
    return int.from_bytes(blake2b(document.encode("utf-8"), digest_size=8).digest(), "little")


def pack_stretches(documents: Sequence[Sequence[np.ndarray]], room: int, end_id: int) -> list[tuple[np.ndarray, int]]:
    """All documents one after the other, with `end_id` in between, cut every `room` tokens.

    Args:
        documents: of each its sentences, as token ids.
        room: tokens of a stretch; only the last one has fewer, or one that began or ended between two documents.

    Returns:
        Each stretch, and the number of the document in which it begins.
    """
    tokens = [np.concatenate([*sentences, [end_id]]) for sentences in documents]
    owners = np.repeat(np.arange(len(tokens)), [len(each) for each in tokens])
    stream = np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
    stretches = []
    for start in range(0, len(stream), room):
        inside = np.flatnonzero(stream[start : start + room] != end_id)
        if len(inside):
            first, last = start + inside[0], start + inside[-1]
            stretches.append((stream[first : last + 1].astype(np.int32), int(owners[first])))
    return stretches


def pack_pairs(documents: Sequence[Sequence[np.ndarray]], keys: Sequence[int], room: int) -> list[Pair]:
    """Pairs of stretches that fill `room` tokens, of which about half follow each other.

    A pair is made of the next sentences of a document that fill the room: the first ones are its first stretch, the
    others its second one, cut at the end. In half of the pairs the second stretch is taken from another document, as
    long as the true one would have been, so that lengths tell nothing; the document then goes on with the true one. A
    sentence that was cut begins the next pair once more. Each stretch begins with a sentence; only where a document has
    a single one left it is halved, and then the other document is entered in the middle of a sentence, too.

    Args:
        documents: of each its sentences, as token ids.
        keys: of each 64 bits that decide, with the number of the sentence, what is drawn.
        room: tokens of both stretches, at least 2.

    Reference: [Devlin et al., 2018](https://arxiv.org/abs/1810.04805), section A.2.
    """
    units = [_cut_long(sentences, max(1, room // 2)) for sentences in documents]
    text = _Text(units)
    return [pair for number, key in enumerate(keys) for pair in _pairs_of(text, number, key, room)]


def _cut_long(sentences: Sequence[np.ndarray], longest: int) -> list[np.ndarray]:
    """The sentences; of a long one, pieces."""
    return [each[at : at + longest] for each in sentences for at in range(0, len(each), longest)]


class _Text:
    """All sentences of several documents, one after the other."""

    def __init__(self, documents: Sequence[Sequence[np.ndarray]]) -> None:
        sentences = [sentence for document in documents for sentence in document]
        self.tokens = np.concatenate([np.zeros(0, np.int32), *sentences]).astype(np.int32)
        self.starts = np.cumsum([0, *map(len, sentences)])
        """Of each sentence; the last one is the end of all."""
        self.bounds = np.cumsum([0, *map(len, documents)])
        """First sentence of each document; the last one is the number of all."""

    def end_of_document(self, sentence: int) -> int:
        """The token after the document that a sentence belongs to."""
        return int(self.starts[self.bounds[np.searchsorted(self.bounds, sentence, side="right")]])

    def elsewhere(self, without: tuple[int, int], wanted: int, is_halved: bool, draws: _Numbers) -> np.ndarray | None:
        """Up to `wanted` tokens from a sentence on, or from its middle, that none of those in `without` is.

        Args:
            without: the first sentence that is left out, and the one after the last.

        Returns:
            The longest of a few; None if there is no other sentence.
        """
        first, last = without
        others = len(self.starts) - 1 - (last - first)
        best = None
        for _ in range(TRIES if others > 0 else 0):
            sentence = draws.below(others)
            sentence += (last - first) * (sentence >= first)
            start, end = int(self.starts[sentence]), self.end_of_document(sentence)
            start += is_halved * ((int(self.starts[sentence + 1]) - start) // 2)
            found = self.tokens[start : min(start + wanted, end)]
            best = found if best is None or len(found) > len(best) else best
            if len(best) == wanted:
                break
        return best


@dataclass
class _Numbers:
    """Numbers that look random, one after the other: they follow from where it starts."""

    state: int

    def below(self, bound: int) -> int:
        """An integer in [0, bound)."""
        self.state = _mixed(self.state)
        return (self.state >> 32) * bound >> 32


def _mixed(number: int) -> int:
    """`mix` of one number of 64 bits."""
    return int(mix(np.array([number], np.uint64))[0])


def _pairs_of(text: _Text, document: int, key: int, room: int) -> Iterator[Pair]:
    """The pairs whose first stretch is from a document."""
    sentence, last = int(text.bounds[document]), int(text.bounds[document + 1])
    own, first_sentence = (sentence, last), sentence
    while sentence < last:
        draws = _Numbers(key ^ _mixed(sentence - first_sentence))
        begin, end = int(text.starts[sentence]), int(text.starts[last])
        stop = sentence + 1  # after the sentences that are begun in this pair
        while stop < last and text.starts[stop] - begin < room:
            stop += 1
        is_halved = stop == sentence + 1
        if is_halved:
            turn = begin + (end - begin) // 2
            if turn == begin:
                return  # a single token
            next_after_first = stop
        else:
            next_after_first = sentence + 1 + draws.below(stop - sentence - 1)
            turn = int(text.starts[next_after_first])
        after = min(begin + room, int(text.starts[stop]))
        second, label = text.tokens[turn:after], FOLLOWS
        if draws.below(2):
            others = own if own != (0, len(text.starts) - 1) else (sentence, stop)
            other = text.elsewhere(others, after - turn, is_halved, draws)
            if other is not None:
                second, label = other, FOLLOWS_NOT
        yield Pair(text.tokens[begin:turn], second, label, document)
        is_cut = after < text.starts[stop]
        sentence = next_after_first if label == FOLLOWS_NOT else stop - is_cut
