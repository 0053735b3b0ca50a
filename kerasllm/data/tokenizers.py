"""Text <-> token ids as graph operations, so that the exported model takes and gives plain strings."""

import hashlib
import io
import json
import shutil
import tempfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from kerasllm.data.published import Vocabulary, read_vocabulary, tokenizer_of_run
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.wordpiece import CONTINUATION, UNKNOWN_TOKEN, Wordpiece, learn_vocabulary
from kerasllm.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
UNKNOWN_TEXT = "⁇"
MASK_TOKEN = "[MASK]"
"""What stands in a text for a hidden token, for tokenizers that have a token for it."""
_MASK_CHARACTER = "\ue000"
"""Stands for the mask inside SentencePiece: of private use, so no normalization changes it."""
_SPACE = "▁"
DESCRIPTION = "tokenizer.json"
# All that Python's str.split() takes for white space, in the language of RE2.
_WHITE_SPACE = r"[\t-\r\x1c-\x20\x{85}\p{Z}]+"
_CHUNK_TEXTS = 1024
_MAX_WORDS = 1_000_000


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
            self.mask_id = int(self._sentencepiece.string_to_id(_MASK_CHARACTER))
            self._space_id = int(self._sentencepiece.string_to_id(_SPACE))

    def word_parts(self) -> tuple[list[str], list[bool]]:
        pieces = self._sentencepiece.id_to_string(tf.range(self.vocabulary_size)).numpy()
        pieces = [MASK_TOKEN if index == self.mask_id else piece.decode() for index, piece in enumerate(pieces)]
        return [piece.removeprefix(_SPACE) for piece in pieces], [not piece.startswith(_SPACE) for piece in pieces]

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        if self.mask_id is None:
            return super().tokenize(texts)
        token_ids = super().tokenize(tf.strings.regex_replace(texts, r"\[MASK\]", _MASK_CHARACTER))
        # A space is part of the token after it, so of a hidden one nothing is to be seen.
        after = tf.concat([token_ids[:, 1:], tf.zeros_like(token_ids[:, :1])], axis=1)
        is_left = (token_ids.flat_values == self._space_id) & (after.flat_values == self.mask_id)
        return tf.ragged.boolean_mask(token_ids, token_ids.with_flat_values(~is_left))

    def _tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return self._sentencepiece.tokenize(texts)

    def _detokenize(self, token_ids: tf.RaggedTensor) -> tf.Tensor:
        texts = self._sentencepiece.detokenize(token_ids)
        return texts if self.mask_id is None else tf.strings.regex_replace(texts, _MASK_CHARACTER, MASK_TOKEN)


class ListTokenizer(Tokenizer):
    """A plain list of words (between spaces) or of characters.

    Args:
        kind: `words` or `characters`.
        entries: the vocabulary after the special tokens, in the order of their ids.
    """

    def __init__(self, kind: str, entries: list[str], normalization: dict) -> None:
        super().__init__(len(SPECIAL_TOKENS) + len(entries), normalization)
        self._split = _SPLIT[kind]
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


_SPLIT: dict[str, Callable[[tf.Tensor], tf.RaggedTensor]] = {
    "words": lambda texts: tf.strings.split(texts),
    "characters": lambda texts: tf.strings.unicode_split(texts, "UTF-8"),
}


def _count_tokens(texts: Iterable[str], kind: str, normalization: dict) -> Counter[bytes]:
    """How often every word or character occurs in the normalised texts."""
    texts = iter(texts)
    counts: Counter[bytes] = Counter()
    while chunk := list(islice(texts, _CHUNK_TEXTS)):
        counts.update(_SPLIT[kind](normalize(tf.constant(chunk), normalization)).flat_values.numpy())
    return counts


def thin_out(counts: Counter[bytes], max_total: int) -> dict[bytes, int]:
    """Counts in the same proportions that add up to at most `max_total`: every n-th occurrence is taken.

    >>> thin_out(Counter(a=60, b=30, c=9, d=1), 10)
    {'a': 6, 'b': 3, 'd': 1}
    """
    total = sum(counts.values())
    thinned = {}
    before = 0
    for token, count in sorted(counts.items()):
        after = before + count
        if taken := after * max_total // total - before * max_total // total:
            thinned[token] = taken
        before = after
    return thinned if total > max_total else dict(sorted(counts.items()))


def _train_sentencepiece(words: dict[bytes, int], settings: TokenizerSettings, **options: Any) -> bytes:
    """A SentencePiece model, as bytes, from the counts of words: no piece reaches over a space.

    Memory grows with the sum of the counts, by about a kilobyte for ten words.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    written = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write("FEFF\t\n")  # a byte order mark is no text; with no rule at all each load prints a remark
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(b"%s\t%d" % (word, count) for word, count in words.items()),
            input_format="tsv",
            model_writer=written,
            model_type=settings.model,
            vocab_size=settings.max_vocabulary_size,
            hard_vocab_limit=False,
            character_coverage=settings.character_coverage,
            normalization_rule_tsv=rules.name,
            pad_id=Tokenizer.pad_id,
            bos_id=Tokenizer.start_id,
            eos_id=Tokenizer.end_id,
            unk_id=Tokenizer.unknown_id,
            unk_surface=UNKNOWN_TEXT,
            num_threads=4,
            minloglevel=2,
            **options,
        )
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    model.normalizer_spec.normalization_rule_tsv = ""  # a temporary name, the only thing that differs between two runs
    return model.SerializeToString(deterministic=True)


def _train_subwords(
    settings: TokenizerSettings, counts: Counter[bytes], collapse_spaces: bool, with_mask: bool
) -> bytes:
    """The SentencePiece model for words with these counts.

    Raises:
        UserError: the vocabulary is too small for the characters that it must cover.
    """
    characters = sorted(set("".join(word.decode("utf-8") for word in counts)))
    words = thin_out(counts, _MAX_WORDS)
    if (
        not collapse_spaces
    ):  # then SentencePiece puts no space before the first word, and learns that of the others here
        words = {b" " + word: count for word, count in words.items()}
    options = {"add_dummy_prefix": collapse_spaces, "remove_extra_whitespaces": collapse_spaces}
    if with_mask:
        options["user_defined_symbols"] = [_MASK_CHARACTER]
        characters = [each for each in characters if each != _MASK_CHARACTER]
    if settings.character_coverage == 1:
        options["required_chars"] = "".join(characters)
    try:
        return _train_sentencepiece(words, settings, **options)
    except RuntimeError as error:
        raise UserError(
            f"tokenizer.max_vocabulary_size: SentencePiece learns no {settings.max_vocabulary_size} subwords from "
            f"texts of {len(characters)} different characters ({str(error).rpartition('] ')[2]}); raise it, or lower "
            "tokenizer.character_coverage"
        ) from error


def _choose_entries(settings: TokenizerSettings, counts: Counter[bytes]) -> bytes:
    """The most frequent words or characters, as JSON."""
    by_frequency = sorted(counts, key=lambda entry: (-counts[entry], entry))
    entries = by_frequency[: settings.max_vocabulary_size - len(SPECIAL_TOKENS)]
    return json.dumps([entry.decode("utf-8") for entry in entries], ensure_ascii=False).encode("utf-8")


def _find_wordpieces(settings: TokenizerSettings, texts: Iterable[str], data_dir: Path | None) -> Vocabulary:
    """The published vocabulary that the settings name, or the one that is learnt from the texts."""
    rules = Vocabulary((), settings.lowercase, settings.strip_accents, settings.split_chinese).normalization()
    if settings.vocabulary is None:
        return Vocabulary(learn_vocabulary(texts, settings.max_vocabulary_size, rules), **rules)
    return read_vocabulary(settings.vocabulary, data_dir, rules)


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


def _copy_tokenizer(settings: TokenizerSettings, directory: Path, data_dir: Path | None) -> Tokenizer:
    """Copies the tokenizer of the run that the settings name, which is what it was there, normalization included."""
    source = tokenizer_of_run(settings.run, data_dir)
    shutil.copytree(source, directory, dirs_exist_ok=True)
    tokenizer = load_tokenizer(directory)
    kind = json.loads((directory / DESCRIPTION).read_bytes())["kind"]
    if kind != settings.kind:
        raise UserError(f"tokenizer.kind: is {settings.kind}, and {source} holds one of kind {kind}; name that")
    return tokenizer


def train_tokenizer(
    settings: TokenizerSettings,
    cleaning: CleaningSettings,
    texts: Iterable[str],
    directory: Path,
    data_dir: Path | None = None,
    with_mask: bool = False,
) -> Tokenizer:
    """Learn a vocabulary, or take a published one or that of a run, write it to `directory` with its description, and
    load it.

    Args:
        cleaning: how the texts were normalised, to be repeated in the graph.
        texts: all of them are used, but for a published vocabulary; the caller bounds their number.
        data_dir: what the path of a published vocabulary, or of a run, is relative to.
        with_mask: whether there must be a token for `[MASK]`, which wordpiece has in any case.

    Raises:
        UserError: see `read_vocabulary` and the functions that learn; the tokenizer of the run is of another kind, or
            the kind can have no mask.
    """
    if settings.run is not None:
        return _copy_tokenizer(settings, directory, data_dir)
    if with_mask and settings.kind not in ("wordpiece", "subwords"):
        raise UserError(f"tokenizer.kind: {settings.kind} has no token for {MASK_TOKEN}; use wordpiece or subwords")
    normalization = {
        "normalize_unicode": cleaning.normalize_unicode,
        "collapse_spaces": cleaning.collapse_spaces,
        "lowercase": settings.lowercase,
    }
    if settings.kind == "wordpiece":
        published = _find_wordpieces(settings, texts, data_dir)
        file, vocabulary = "vocab.txt", "".join(f"{token}\n" for token in published.tokens).encode("utf-8")
        normalization = published.normalization()
    elif settings.kind == "subwords":
        counts = _count_tokens(texts, "words", normalization)
        file, vocabulary = "subwords.model", _train_subwords(settings, counts, cleaning.collapse_spaces, with_mask)
    else:
        counts = _count_tokens(texts, settings.kind, normalization)
        file, vocabulary = "vocabulary.json", _choose_entries(settings, counts)
    description = {
        "kind": settings.kind,
        "file": file,
        "sha256": hashlib.sha256(vocabulary).hexdigest(),
        "normalization": normalization,
    }
    if settings.kind == "subwords" and with_mask:
        description["has_mask"] = True
    directory.mkdir(parents=True, exist_ok=True)
    (directory / file).write_bytes(vocabulary)
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return load_tokenizer(directory)
