"""BERT's way from text to token ids, as graph operations: the same ids as its published tokenizers give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from kerasllm.data.published import SPECIAL_TOKENS

UNKNOWN_TOKEN = "[UNK]"
CONTINUATION = "##"
MAX_WORD_CHARACTERS = 100

_CHUNK_TEXTS = 1024
_CHARACTERS = Path(__file__).with_name("wordpiece_characters.npz")
# What becomes of a character, as its place in `CharacterTables.results`; those that become others follow.
_REMOVED, _KEPT, _SPACE, _ALONE, _OPENING, _CLOSING = range(6)
# Flags of what it becomes: a word ends before it; a word ends after it; it is no part of any word.
_BEFORE, _AFTER, _NOTHING = 1, 2, 4
_FLAG_BITS, _COUNT_BITS, _PAGE_BITS = 3, 2, 8
_ITSELF = 0x110000


class CharacterTables(NamedTuple):
    """What becomes of each character. Its place is found in two steps, since most pages of Unicode are alike."""

    pages: Any
    """int32 [4352]: code // 256 -> page * 256."""
    places: Any
    """int32 [pages * 256]: page * 256 + code % 256 -> place in `results`, times 4, plus how many it becomes."""
    results: Any
    """int32 [R]: a character that it becomes, times 8, plus flags."""


class Words(NamedTuple):
    """The words of a batch of texts, normalised, their characters one after the other."""

    codes: tf.Tensor
    """int32 [N]: characters."""
    sources: tf.Tensor
    """int32 [N]: where each comes from, counted over the characters of all texts."""
    splits: tf.Tensor
    """int64 [W + 1]: word w has the characters from splits[w] to splits[w + 1]."""
    row_splits: tf.Tensor
    """int64 [B + 1]: text b has the words from row_splits[b] to row_splits[b + 1]."""
    text_starts: tf.Tensor
    """int64 [B + 1]: where each text starts, counted over the characters of all texts."""

    def texts(self) -> tf.Tensor:
        """string [W]; a word that is too long is unknown."""
        words = tf.RaggedTensor.from_row_splits(self.codes, self.splits, validate=False)
        return tf.where(self.are_long(), UNKNOWN_TOKEN, tf.strings.unicode_encode(words, "UTF-8"))

    def are_long(self) -> tf.Tensor:
        """bool [W]"""
        return self.splits[1:] - self.splits[:-1] > MAX_WORD_CHARACTERS


@lru_cache
def character_tables(lowercase: bool, strip_accents: bool, split_chinese: bool) -> CharacterTables:
    """What the published tokenizers do with each character, from a file that was made by asking them."""
    with np.load(_CHARACTERS) as file:
        stored = dict(file)

    def rewrites(name: str) -> dict[int, list[int]]:
        texts = np.split(stored[f"{name}_texts"], np.cumsum(stored[f"{name}_counts"])[:-1])
        return {code: text.tolist() for code, text in zip(stored[f"{name}_codes"].tolist(), texts, strict=True)}

    def marked(name: str) -> np.ndarray:
        found = np.zeros(0x110000, bool)
        for first, last in stored[name]:
            found[first : last + 1] = True
        return found

    accents = rewrites("strip_accents") if strip_accents else {}
    cases = rewrites("lowercase") if lowercase else {}
    alone = marked("punctuation")
    chinese = marked("chinese") if split_chinese else np.zeros_like(alone)
    places = np.where(alone | chinese, _ALONE, _KEPT).astype("int32")
    flags = (0, 0, _BEFORE | _AFTER | _NOTHING, _BEFORE | _AFTER, _BEFORE, _AFTER)
    results = [_ITSELF << _FLAG_BITS | each for each in flags]
    counts = np.minimum(places, 1)
    for code in sorted(accents.keys() | cases.keys()):
        text = [lower for each in accents.get(code, [code]) for lower in cases.get(each, [each])]
        places[code], counts[code] = len(results), len(text)
        results += [each << _FLAG_BITS | (_BEFORE | _AFTER) * int(chinese[code] | alone[each]) for each in text]
    places[marked("space")] = _SPACE
    counts[marked("removed")] = 0
    places = np.where(counts > 0, places << _COUNT_BITS | counts, 0)
    unique, pages = np.unique(places.reshape(-1, 1 << _PAGE_BITS), axis=0, return_inverse=True)
    pages = (pages.ravel() << _PAGE_BITS).astype("int32")
    return CharacterTables(pages, unique.ravel(), np.array(results, "int32"))


class Wordpiece(tf.Module):
    """Splits texts into words at white space and punctuation, and words into the longest pieces of a vocabulary.

    A special token that is written in a text, `[MASK]` say, is that token. A word of which no pieces are known is one
    unknown token, and so is one of more than 100 characters. Ids are those of Hugging Face's BertTokenizer, but where
    two spacing marks (Unicode category Mc) follow each other in an order that is not canonical.

    Args:
        vocabulary: tokens in the order of their ids, the special ones among them; `##` begins a piece that goes on.
        lowercase: turn texts to lower case.
        strip_accents: take texts apart into letters and accents (Unicode form NFD), and leave the accents out.
        split_chinese: make each Chinese character a word.

    Reference: [Song et al., 2021](https://arxiv.org/abs/2012.15524), for the algorithm in linear time.
    """

    def __init__(self, vocabulary: Sequence[str], lowercase: bool, strip_accents: bool, split_chinese: bool) -> None:
        super().__init__()
        self._tables = CharacterTables(*map(tf.constant, character_tables(lowercase, strip_accents, split_chinese)))
        self._pieces = tf_text.FastWordpieceTokenizer(
            _without_repetition(vocabulary),
            suffix_indicator=CONTINUATION,
            max_bytes_per_word=4 * MAX_WORD_CHARACTERS,
            token_out_type=tf.int32,
            unknown_token=UNKNOWN_TOKEN,
            no_pretokenization=True,
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def words(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """string [B] -> string [B, None], normalised."""
        words = _split(texts, self._tables)
        return tf.RaggedTensor.from_row_splits(words.texts(), words.row_splits, validate=False)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """string [B] -> int32 [B, None]."""
        words = _split(texts, self._tables)
        pieces = self._pieces.tokenize(words.texts())
        return _regroup(pieces, pieces.values, words.row_splits)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokenize_with_offsets(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """string [B] -> ids int32 [B, None], and the characters of the text that each token stands for: the first,
        and the one after the last."""
        words = _split(texts, self._tables)
        pieces, starts, ends = self._pieces.tokenize_with_offsets(words.texts())
        codes = words.codes
        widths = 1 + sum(tf.cast(codes >= bound, tf.int64) for bound in (0x80, 0x800, 0x10000))  # bytes in UTF-8
        after = tf.cumsum(widths)
        before = after - widths
        rows = pieces.value_rowids()  # the word of each piece
        word_bytes = tf.gather(before, tf.gather(words.splits, rows))
        first = tf.searchsorted(before, word_bytes + tf.cast(starts.values, tf.int64))
        last = tf.searchsorted(after, word_bytes + tf.cast(ends.values, tf.int64))
        word_last = tf.cast(tf.gather(words.splits, rows + 1) - 1, tf.int32)
        last = tf.where(tf.gather(words.are_long(), rows), word_last, last)
        text_starts = tf.repeat(words.text_starts[:-1], words.row_splits[1:] - words.row_splits[:-1])  # [W]
        shift = tf.cast(tf.gather(text_starts, rows), tf.int32)
        offsets = tf.gather(words.sources, first) - shift, tf.gather(words.sources, last) + 1 - shift
        return tuple(_regroup(pieces, values, words.row_splits) for values in (pieces.values, *offsets))


def _without_repetition(vocabulary: Sequence[str]) -> list[str]:
    """The vocabulary with entries that no word can have for those that are empty or come again."""
    last = {token: index for index, token in enumerate(vocabulary)}
    return [token if token and last[token] == index else f"[{index}]" for index, token in enumerate(vocabulary)]


def _regroup(pieces: tf.RaggedTensor, values: tf.Tensor, row_splits: tf.Tensor) -> tf.RaggedTensor:
    """Values of the pieces of each word -> values of the pieces of each text."""
    return tf.RaggedTensor.from_row_splits(values, tf.gather(pieces.row_splits, row_splits), validate=False)


def _split(texts: tf.Tensor, tables: CharacterTables) -> Words:
    """string [B] -> their words."""
    decoded = tf.strings.unicode_decode(texts, "UTF-8")
    codes, text_starts = decoded.flat_values, decoded.row_splits
    pages = tf.gather(tables.pages, tf.bitwise.right_shift(codes, _PAGE_BITS))
    places = tf.gather(tables.places, pages + tf.bitwise.bitwise_and(codes, (1 << _PAGE_BITS) - 1))
    places = _mark_special_tokens(places, codes, text_starts)
    results, codes, sources, row_splits = _look_up(places, codes, text_starts, tables)
    flags = tf.bitwise.bitwise_and(results, (1 << _FLAG_BITS) - 1)
    results = tf.bitwise.right_shift(results, _FLAG_BITS)
    results = tf.where(results == _ITSELF, codes, results)
    follows_end = tf.concat([[_AFTER], tf.bitwise.bitwise_and(flags, _AFTER)], axis=0)
    opens_text = row_splits[:, tf.newaxis]
    follows_end = tf.tensor_scatter_nd_update(follows_end, opens_text, tf.fill([tf.size(row_splits)], _AFTER))
    begins = tf.bitwise.bitwise_and(flags, _BEFORE) + follows_end[:-1] > 0
    kept = tf.where(flags < _NOTHING)[:, 0]
    starts = tf.where(tf.gather(begins, kept))[:, 0]  # [W]
    splits = tf.concat([starts, [tf.size(kept, tf.int64)]], axis=0)
    row_splits = tf.searchsorted(kept, row_splits, out_type=tf.int64)
    row_splits = tf.searchsorted(starts, row_splits, out_type=tf.int64)
    return Words(tf.gather(results, kept), tf.gather(sources, kept), splits, row_splits, text_starts)


def _look_up(places: tf.Tensor, codes: tf.Tensor, row_splits: tf.Tensor, tables: CharacterTables):
    """What characters [N] become: results [M], which characters and which ones of all these were [M], row splits."""
    counts = tf.bitwise.bitwise_and(places, (1 << _COUNT_BITS) - 1)
    places = tf.bitwise.right_shift(places, _COUNT_BITS)

    def one_for_one() -> tuple[tf.Tensor, ...]:
        return tf.gather(tables.results, places), codes, tf.range(tf.size(places)), row_splits

    def none_or_several() -> tuple[tf.Tensor, ...]:
        ends = tf.concat([[0], tf.cumsum(counts)], axis=0)
        sources = tf.repeat(tf.range(tf.size(places)), counts)
        chosen = tf.range(tf.size(sources)) + tf.gather(places - ends[:-1], sources)
        row_splits_after = tf.cast(tf.gather(ends, row_splits), tf.int64)
        return tf.gather(tables.results, chosen), tf.gather(codes, sources), sources, row_splits_after

    return tf.cond(tf.reduce_all(counts == 1), one_for_one, none_or_several)


def _mark_special_tokens(places: tf.Tensor, codes: tf.Tensor, row_splits: tf.Tensor) -> tf.Tensor:
    """The places [N], with the characters of special tokens left as they are, and each token a word."""
    longest = max(map(len, SPECIAL_TOKENS))
    tokens = tf.constant([[*map(ord, token), *[-1] * (longest - len(token))] for token in SPECIAL_TOKENS])
    lengths = tf.constant([len(token) for token in SPECIAL_TOKENS], tf.int64)
    brackets = tf.where(codes == ord("["))  # [Q, 1]

    def marked() -> tf.Tensor:
        text_ends = tf.gather(row_splits, tf.searchsorted(row_splits, brackets[:, 0], side="right"))
        near = tf.gather(codes, tf.minimum(brackets + tf.range(longest, dtype=tf.int64), tf.size(codes, tf.int64) - 1))
        same = tf.reduce_all((near[:, tf.newaxis] == tokens) | (tokens < 0), axis=-1)  # [Q, 5]
        same &= brackets + lengths <= text_ends[:, tf.newaxis]
        first = tf.boolean_mask(brackets[:, 0], tf.reduce_any(same, axis=1))
        inside = tf.ragged.range(first, first + tf.gather(lengths, tf.where(same)[:, 1])).flat_values
        code = tf.gather(codes, inside)
        place = tf.where(code == ord("["), _OPENING, tf.where(code == ord("]"), _CLOSING, _KEPT))
        return tf.tensor_scatter_nd_update(places, inside[:, tf.newaxis], tf.bitwise.left_shift(place, _COUNT_BITS) + 1)

    return tf.cond(tf.size(brackets) > 0, marked, lambda: places)


def learn_vocabulary(texts: Iterable[str], max_vocabulary_size: int, normalization: dict[str, bool]) -> tuple[str, ...]:
    """Tokens learnt from texts, the special ones first, then characters; the same ones from the same texts.

    A word with a character that is not among the most frequent ones is left out: characters, each of which is a token
    twice, take at most two thirds of the vocabulary. Pieces are joined in the order of their frequency.

    Args:
        normalization: the last three arguments of `Wordpiece`.
    """
    import tokenizers

    splitter = Wordpiece(SPECIAL_TOKENS, **normalization)
    texts, counts = iter(texts), Counter()
    while chunk := list(islice(texts, _CHUNK_TEXTS)):
        counts.update(splitter.words(tf.constant(chunk)).flat_values.numpy().tolist())
    words = {word.decode("utf-8"): count for word, count in sorted(counts.items())}
    words = {word: count for word, count in words.items() if word not in SPECIAL_TOKENS}
    frequencies = Counter()
    for word, count in words.items():
        frequencies.update(dict.fromkeys(word, count))
    most_frequent = sorted(frequencies, key=lambda character: (-frequencies[character], character))
    characters = sorted(most_frequent[: (max_vocabulary_size - len(SPECIAL_TOKENS)) // 3])
    lines = (" ".join([word] * count) for word, count in words.items() if set(word) <= set(characters))
    # Given all single characters in an order, the trainer numbers them so, and breaks ties in the same way each time.
    first = [*SPECIAL_TOKENS, *characters, *(f"{CONTINUATION}{character}" for character in characters)]
    learnt = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=UNKNOWN_TOKEN))
    learnt.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=max_vocabulary_size,
        special_tokens=first,
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    learnt.train_from_iterator(lines, trainer)
    ids = learnt.get_vocab()
    return tuple(sorted(ids, key=ids.__getitem__))
