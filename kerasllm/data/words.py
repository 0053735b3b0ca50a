"""The words of raw texts, and where they stand, as graph operations."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import tensorflow as tf

PERIOD, APOSTROPHES = ord("."), (ord("'"), ord("’"))


class FoundWords(NamedTuple):
    """The words of texts, row by row; positions count characters (Unicode code points), the end is the one after."""

    texts: tf.RaggedTensor
    """string [B, N]."""
    starts: tf.RaggedTensor
    """int32 [B, N]."""
    ends: tf.RaggedTensor
    """int32 [B, N]."""


class _Characters(NamedTuple):
    """All characters of a batch that are no white space, one after the other."""

    codes: tf.Tensor
    """int32 [K]."""
    rows: tf.Tensor
    """int64 [K]: the text that each stands in."""
    positions: tf.Tensor
    """int64 [K]: its place there."""
    opens: tf.Tensor
    """bool [K]: it is the first one after white space."""


@lru_cache
def bounds_of(kind: str) -> list[int]:
    """A kind of character as ranges: the first of each, and the first that is not in it any more, ascending.

    Args:
        kind: `space`, what `str.split` splits at; or `punctuation`, with signs of currencies.
    """
    belongs: Callable[[str], bool] = str.isspace
    if kind == "punctuation":
        belongs = lambda character: (category := unicodedata.category(character))[0] == "P" or category == "Sc"  # noqa: E731
    marks = [belongs(chr(code)) for code in range(sys.maxunicode + 1)]
    return [code for code in range(1, len(marks)) if marks[code] != marks[code - 1]]


def _is(codes: tf.Tensor, kind: str) -> tf.Tensor:
    """int32 [K] -> bool [K]."""
    passed = tf.searchsorted(tf.constant(bounds_of(kind), tf.int32), codes, side="right")
    return passed % 2 == 1


def find_words(texts: tf.Tensor) -> FoundWords:
    """Where the words of texts are.

    White space separates words, and punctuation at their ends is split off: each sign is a word, equal ones in a row
    are one (`...`). A period stays where it ends an abbreviation, `U.S.`, or an initial, `J.`; the English genitive,
    `'s`, is a word of its own.

    A text whose only white space is TAB holds words that somebody has found before; these are taken as they are.

    Args:
        texts: string [B], UTF-8.
    """
    decoded = tf.strings.unicode_decode(texts, "UTF-8")
    codes, rows = decoded.flat_values, decoded.value_rowids()
    is_space, num_rows = _is(codes, "space"), decoded.nrows()
    follows_space = tf.concat([[True], is_space[:-1]], axis=0)[: tf.size(codes)]
    positions = tf.range(tf.size(codes, tf.int64)) - tf.gather(decoded.row_splits, rows)
    kept = tf.where(~is_space)[:, 0]
    opens = follows_space | (positions == 0)
    characters = _Characters(*(tf.gather(each, kept) for each in (codes, rows, positions, opens)))
    tabs = tf.math.unsorted_segment_sum(tf.cast(codes == ord("\t"), tf.int32), rows, num_rows)
    spaces = tf.math.unsorted_segment_sum(tf.cast(is_space, tf.int32), rows, num_rows)
    is_split = (tabs > 0) & (tabs == spaces)  # [B]
    begins = characters.opens | (_begins_inside(characters) & ~tf.gather(is_split, characters.rows))
    return _as_words(characters, begins, num_rows)


def _begins_inside(characters: _Characters) -> tf.Tensor:
    """bool [K]: whether a word begins at a character because of punctuation."""
    codes, opens = characters.codes, characters.opens
    places = tf.range(tf.size(codes))
    chunks = tf.cumsum(tf.cast(opens, tf.int32)) - 1  # what white space separates
    is_core = ~_is(codes, "punctuation")
    first = tf.math.segment_min(tf.where(is_core, places, tf.size(codes)), chunks)
    last = tf.math.segment_max(tf.where(is_core, places, -1), chunks)  # [C]
    begin, end = tf.where(opens)[:, 0], tf.concat([tf.where(opens)[1:, 0], [tf.size(codes, tf.int64)]], axis=0)
    begin, end = tf.cast(begin, tf.int32), tf.cast(end, tf.int32)[: tf.size(begin)]

    def code(place: tf.Tensor) -> tf.Tensor:
        """Of each chunk the character at a place; 0 outside of it."""
        inside = (place >= begin) & (place < end)
        return tf.where(inside, tf.gather(codes, tf.clip_by_value(place, 0, tf.maximum(tf.size(codes) - 1, 0))), 0)

    last_code, before_last = code(last), code(last - 1)
    is_digit = (last_code >= ord("0")) & (last_code <= ord("9"))
    is_capital = (last_code >= ord("A")) & (last_code <= ord("Z"))
    is_short = (before_last == PERIOD) & (last - 1 > first) & ~is_digit | is_capital & (first == last)
    kept_last = tf.where(is_short & (code(last + 1) == PERIOD), last + 1, last)
    is_genitive = (last_code == ord("s")) | (last_code == ord("S"))
    is_genitive &= (last - 1 > first) & ((before_last == APOSTROPHES[0]) | (before_last == APOSTROPHES[1]))
    genitive = tf.where(is_genitive, last - 1, -1)
    first, last, genitive = (tf.gather(each, chunks) for each in (first, kept_last, genitive))
    is_other = tf.concat([[True], codes[1:] != codes[:-1]], axis=0)[: tf.size(codes)]
    leads, trails = (places < first) & is_other, (places > last) & (is_other | (places == last + 1))
    return leads | trails | (places == first) | (places == genitive)


def _as_words(characters: _Characters, begins: tf.Tensor, num_rows: tf.Tensor) -> FoundWords:
    """The words that begin at some of the characters, bool [K]; each reaches to where the next begins."""
    starts = tf.where(begins)[:, 0]
    is_last = tf.concat([begins[1:], [True]], axis=0)[: tf.size(begins)]
    rows = tf.gather(characters.rows, starts)
    texts = tf.strings.unicode_encode(
        tf.RaggedTensor.from_row_starts(characters.codes, starts, validate=False), "UTF-8"
    )
    first = tf.cast(tf.gather(characters.positions, starts), tf.int32)
    after = tf.cast(tf.boolean_mask(characters.positions, is_last), tf.int32) + 1
    return FoundWords(
        *(
            tf.RaggedTensor.from_value_rowids(values, rows, nrows=num_rows, validate=False)
            for values in (texts, first, after)
        )
    )


def cut_out(texts: tf.Tensor, starts: tf.RaggedTensor, ends: tf.RaggedTensor) -> tf.RaggedTensor:
    """Parts of texts, string [B, E], from their first characters up to before their ends, int32 [B, E]."""
    decoded = tf.strings.unicode_decode(texts, "UTF-8")
    shift = tf.cast(tf.gather(decoded.row_splits, starts.value_rowids()), tf.int32)
    places = tf.ragged.range(starts.flat_values + shift, ends.flat_values + shift)
    codes = places.with_flat_values(tf.gather(decoded.flat_values, places.flat_values))
    return starts.with_flat_values(tf.strings.unicode_encode(codes, "UTF-8"))
