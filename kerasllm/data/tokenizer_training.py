"""A vocabulary is learnt from texts, taken from a published model, or copied from a run."""

import hashlib
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import tensorflow as tf

from kerasllm.data.published import Vocabulary, read_vocabulary, tokenizer_of_run
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.tokenizers import (
    DESCRIPTION,
    MASK_CHARACTER,
    MASK_TOKEN,
    SPECIAL_TOKENS,
    SPLIT,
    UNKNOWN_TEXT,
    Tokenizer,
    load_tokenizer,
    normalize,
)
from kerasllm.data.wordpiece import learn_vocabulary
from kerasllm.errors import UserError

_CHUNK_TEXTS = 1024
_MAX_WORDS = 1_000_000


def _count_tokens(texts: Iterable[str], kind: str, normalization: dict) -> Counter[bytes]:
    """How often every word or character occurs in the normalised texts."""
    texts = iter(texts)
    counts: Counter[bytes] = Counter()
    while chunk := list(islice(texts, _CHUNK_TEXTS)):
        counts.update(SPLIT[kind](normalize(tf.constant(chunk), normalization)).flat_values.numpy())
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
        options["user_defined_symbols"] = [MASK_CHARACTER]
        characters = [each for each in characters if each != MASK_CHARACTER]
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
