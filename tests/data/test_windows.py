"""Windows over long texts: they cover all, overlap as asked, and fit."""

import math

import pytest
import tensorflow as tf

from kerasllm.data.published import SPECIAL_TOKENS, Vocabulary
from kerasllm.data.tokenizers import WordpieceTokenizer
from kerasllm.data.windows import MIN_LENGTH, build_windows

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = WordpieceTokenizer(Vocabulary((*SPECIAL_TOKENS, *LETTERS)))
START, END = 2, 3
PAIRS = [(" " + " ".join(LETTERS[:asked]), " ".join(LETTERS[:read]) + " ") for asked in range(9) for read in range(24)]


def ids(text):
    return [len(SPECIAL_TOKENS) + LETTERS.index(letter) for letter in text.split()]


def reference(short, long, max_length, stride):
    """The sequences of a pair, one after the other, the tokens that they begin with, and what is cut."""
    room = max_length - 3
    asked, tokens = ids(short)[: room // 2], ids(long)
    width = room - len(asked)
    step = min(stride, math.ceil(width / 2))
    firsts = [0]
    while firsts[-1] + width < len(tokens):
        firsts.append(firsts[-1] + step)
    parts = [([START, *asked, END], [*tokens[first : first + width], END]) for first in firsts]
    return parts, firsts, len(ids(short)) - len(asked)


@pytest.mark.parametrize("stride", [1, 3, 100])
@pytest.mark.parametrize("max_length", [MIN_LENGTH, 6, 12, 40])
def test_windows_of_all_lengths(max_length, stride):
    windows = build_windows(TOKENIZER, *(tf.constant(texts) for texts in zip(*PAIRS, strict=True)), max_length, stride)
    pairs, firsts, positions, lengths = (
        array.numpy().tolist() for array in (windows.pairs, windows.first_tokens, windows.positions, windows.lengths)
    )
    assert pairs == sorted(pairs)
    sequences, segments = windows.token_ids.to_list(), windows.segment_ids.to_list()
    assert max(map(len, sequences)) <= max_length
    for number, (short, long) in enumerate(PAIRS):
        parts, expected_firsts, num_cut = reference(short, long, max_length, stride)
        rows = [row for row, pair in enumerate(pairs) if pair == number]
        assert [sequences[row] for row in rows] == [first + second for first, second in parts]
        assert [segments[row] for row in rows] == [[0] * len(first) + [1] * len(second) for first, second in parts]
        assert [firsts[row] for row in rows] == expected_firsts
        assert int(windows.num_cut[number]) == num_cut
        tokens = ids(long)
        inside = [range(firsts[row], firsts[row] + lengths[row]) for row in rows]
        assert {place for window in inside for place in window} == set(range(len(tokens))), "all is read"
        for row, window in zip(rows, inside, strict=True):
            assert sequences[row][positions[row] : positions[row] + lengths[row]] == [tokens[i] for i in window]
        half = (max_length - 3 - len(ids(short)[: (max_length - 3) // 2])) // 2
        for first in range(len(tokens) - half + 1):
            span = range(first, first + half)
            assert any(set(span) <= set(window) for window in inside), "what is short is whole in one of them"


def test_some_of_them_padded():
    windows = build_windows(TOKENIZER, tf.constant(["a", "b c"]), tf.constant(["d e f g h", "i"]), 8, 2)
    batch, is_long = windows.sequences(1, 3)
    start, end, (a, b, c, f, g, h, i) = START, END, ids("a b c f g h i")
    assert windows.pairs.numpy().tolist() == [0, 0, 1]
    assert batch["token_ids"].numpy().tolist() == [[start, a, end, f, g, h, end], [start, b, c, end, i, end, 0]]
    assert batch["segment_ids"].numpy().tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0]]
    assert is_long.numpy().astype(int).tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 0, 0]]
