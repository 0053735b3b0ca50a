"""Text <-> token ids as graph operations, so that the exported model takes and gives plain strings."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text

from kerasllm.data.published import Vocabulary, read_vocabulary
from kerasllm.data.wordpiece import CONTINUATION, UNKNOWN_TOKEN, Wordpiece
from kerasllm.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
UNKNOWN_TEXT = "⁇"
MASK_TOKEN = "[MASK]"
"""What stands in a text for a hidden token, for tokenizers that have a token for it."""
MASK_CHARACTER = "\ue000"
"""Stands for the mask inside SentencePiece: of private use, so no normalization changes it."""
_SPACE = "▁"
DESCRIPTION = "tokenizer.json"
# All that Python's str.split() takes for white space, in the language of RE2.
_WHITE_SPACE = r"[\t-\r\x1c-\x20\x{85}\p{Z}]+"


class Tokenizer(tf.Module):
    """What every kind of tokenizer does around its vocabulary. Ids 0 to 3 mean the same in each kind.

    Texts are normalised in the graph exactly as cleaning normalised the training texts, so that a question to the
    exported model meets the same vocabulary. Track it in a SavedModel whose endpoints use it.

    Args:
        vocabulary_size: number of ids, special tokens included.
        normalization: `normalize_unicode`, `collapse_spaces` and `lowercase` as in the settings.
    """

    pad_id = 0
    start_id = 1
    end_id = 2
    unknown_id = 3
    mask_id: int | None = None
    """Of the token that `[MASK]` in a text becomes; None if there is none."""

    def __init__(self, vocabulary_size: int, normalization: dict) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self._normalization = dict(normalization)

    @abstractmethod
    def _tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor: ...

    @abstractmethod
    def _detokenize(self, token_ids: tf.RaggedTensor) -> tf.Tensor: ...

    @property
    def special_ids(self) -> list[int]:
        """Of the tokens that stand for no text."""
        ids = [self.pad_id, self.start_id, self.end_id, self.unknown_id]
        return ids if self.mask_id is None else [*ids, self.mask_id]

    def word_parts(self) -> tuple[list[str], list[bool]]:
        """Of each id the text that it stands for, and whether that goes on with the word of the token before.

        Raises:
            NotImplementedError: the kind has no mask, and so nobody who asks.
        """
        raise NotImplementedError

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """string [B] -> int32 [B, None], without special tokens."""
        return self._tokenize(normalize(texts, self._normalization))

    def detokenize(self, token_ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """int32 [B, T], dense or ragged -> string [B].

        Padding and starts are dropped, and everything from the first end on; an unknown token reads `⁇`.
        """
        if isinstance(token_ids, tf.RaggedTensor):
            token_ids = token_ids.to_tensor(self.pad_id)
        has_ended = tf.cumsum(tf.cast(token_ids == self.end_id, tf.int32), axis=1) > 0
        is_text = (token_ids != self.pad_id) & (token_ids != self.start_id) & ~has_ended
        return self._detokenize(tf.ragged.boolean_mask(token_ids, is_text))


def normalize(texts: tf.Tensor, normalization: dict) -> tf.Tensor:
    """string [B] -> string [B]: `cleaning.normalize` as graph operations, then lower case if asked for."""
    if normalization["normalize_unicode"] != "none":
        texts = tf_text.normalize_utf8(texts, normalization["normalize_unicode"])
    if normalization["collapse_spaces"]:
        texts = tf.strings.strip(tf.strings.regex_replace(texts, _WHITE_SPACE, " "))
    if normalization["lowercase"]:
        texts = tf.strings.lower(texts, encoding="utf-8")
    return texts


class SubwordTokenizer(Tokenizer):
    """SentencePiece: pieces of words, most frequent words whole.

    Args:
        model: the bytes of a trained SentencePiece model; they become part of the graph.
        has_mask: whether it was trained with a token for `[MASK]`.
    """

    def __init__(self, model: bytes, normalization: dict, has_mask: bool = False) -> None:
        self._sentencepiece = tf_text.SentencepieceTokenizer(model=model)
        super().__init__(int(self._sentencepiece.vocab_size()), normalization)
        if has_mask:
            self.mask_id = int(self._sentencepiece.string_to_id(MASK_CHARACTER))
            self._space_id = int(self._sentencepiece.string_to_id(_SPACE))

    def word_parts(self) -> tuple[list[str], list[bool]]:
        pieces = self._sentencepiece.id_to_string(tf.range(self.vocabulary_size)).numpy()
        pieces = [MASK_TOKEN if index == self.mask_id else piece.decode() for index, piece in enumerate(pieces)]
        return [piece.removeprefix(_SPACE) for piece in pieces], [not piece.startswith(_SPACE) for piece in pieces]

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        if self.mask_id is None:
            return super().tokenize(texts)
        token_ids = super().tokenize(tf.strings.regex_replace(texts, r"\[MASK\]", MASK_CHARACTER))
        # A space is part of the token after it, so of a hidden one nothing is to be seen.
        after = tf.concat([token_ids[:, 1:], tf.zeros_like(token_ids[:, :1])], axis=1)
        is_left = (token_ids.flat_values == self._space_id) & (after.flat_values == self.mask_id)
        return tf.ragged.boolean_mask(token_ids, token_ids.with_flat_values(~is_left))

    def _tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return self._sentencepiece.tokenize(texts)

    def _detokenize(self, token_ids: tf.RaggedTensor) -> tf.Tensor:
        texts = self._sentencepiece.detokenize(token_ids)
        return texts if self.mask_id is None else tf.strings.regex_replace(texts, MASK_CHARACTER, MASK_TOKEN)


class ListTokenizer(Tokenizer):
    """A plain list of words (between spaces) or of characters.

    Args:
        kind: `words` or `characters`.
        entries: the vocabulary after the special tokens, in the order of their ids.
    """

    def __init__(self, kind: str, entries: list[str], normalization: dict) -> None:
        super().__init__(len(SPECIAL_TOKENS) + len(entries), normalization)
        self._split = SPLIT[kind]
        self._separator = " " if kind == "words" else ""
        self._entries = tf.constant([*[""] * 3, UNKNOWN_TEXT, *entries])
        ids = tf.range(len(SPECIAL_TOKENS), self.vocabulary_size, dtype=tf.int64)
        pairs = tf.lookup.KeyValueTensorInitializer(self._entries[len(SPECIAL_TOKENS) :], ids)
        self._table = tf.lookup.StaticHashTable(pairs, default_value=self.unknown_id)

    def _tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        tokens = self._split(texts)
        return tokens.with_flat_values(tf.cast(self._table.lookup(tokens.flat_values), tf.int32))

    def _detokenize(self, token_ids: tf.RaggedTensor) -> tf.Tensor:
        tokens = token_ids.with_flat_values(tf.gather(self._entries, token_ids.flat_values))
        return tf.strings.reduce_join(tokens, axis=1, separator=self._separator)


class WordpieceTokenizer(Tokenizer):
    """BERT's: words, and pieces of the rarer ones. Starts and ends of texts are `[CLS]` and `[SEP]`.

    Its ids are those of the vocabulary, and it normalises as BERT does, whatever cleaning did: see `Wordpiece`.

    Args:
        vocabulary: tokens, `[PAD]` first, and how texts are normalised.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(len(vocabulary.tokens), {})
        self.vocabulary = vocabulary
        ids = {token: index for index, token in enumerate(vocabulary.tokens)}
        self.unknown_id, self.start_id, self.end_id = ids[UNKNOWN_TOKEN], ids["[CLS]"], ids["[SEP]"]
        self.mask_id = ids[MASK_TOKEN]
        self._wordpiece = Wordpiece(vocabulary.tokens, **vocabulary.normalization())
        shown = [UNKNOWN_TEXT if token == UNKNOWN_TOKEN else token for token in vocabulary.tokens]
        self._entries = tf.constant(shown)

    def word_parts(self) -> tuple[list[str], list[bool]]:
        tokens = self.vocabulary.tokens
        return [each.removeprefix(CONTINUATION) for each in tokens], [each.startswith(CONTINUATION) for each in tokens]

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return self._wordpiece.tokenize(texts)

    def tokenize_with_offsets(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """string [B] -> int32 [B, None] three times: ids, and where in its text each token begins and ends.

        Begin and end count the characters (Unicode code points) of the text as it was given; the end is the one after
        the last, so that `tf.strings.substr(text, begin, end - begin, unit="UTF8_CHAR")` is what the token stands for.
        """
        return self._wordpiece.tokenize_with_offsets(texts)

    def _detokenize(self, token_ids: tf.RaggedTensor) -> tf.Tensor:
        tokens = token_ids.with_flat_values(tf.gather(self._entries, token_ids.flat_values))
        joined = tf.strings.reduce_join(tokens, axis=1, separator=" ")
        return tf.strings.regex_replace(joined, f" {CONTINUATION}", "")


SPLIT: dict[str, Callable[[tf.Tensor], tf.RaggedTensor]] = {
    "words": lambda texts: tf.strings.split(texts),
    "characters": lambda texts: tf.strings.unicode_split(texts, "UTF-8"),
}


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load what `train_tokenizer` wrote.

    Raises:
        UserError: a file is missing, or the vocabulary is not the one that was trained (by checksum).
    """
    try:
        description = json.loads((directory / DESCRIPTION).read_bytes())
        vocabulary = (directory / description["file"]).read_bytes()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory}: holds no readable tokenizer ({error}); run prepare again") from error
    if hashlib.sha256(vocabulary).hexdigest() != description["sha256"]:
        raise UserError(f"{directory / description['file']}: does not match its checksum; run prepare again")
    if description["kind"] == "wordpiece":
        return WordpieceTokenizer(read_vocabulary(str(directory)))
    if description["kind"] == "subwords":
        return SubwordTokenizer(vocabulary, description["normalization"], description.get("has_mask", False))
    return ListTokenizer(description["kind"], json.loads(vocabulary), description["normalization"])
