"""Sentences with tagged words, as CoNLL writes them: a word a line, its columns with white space between them.

    EU      NNP  I-NP  I-ORG
    rejects VBZ  I-VP  O
    German  JJ   I-NP  I-MISC

A line without anything ends a sentence; one that begins with -DOCSTART- begins a document, and is no word.

A record is a sentence, or several of a document that follow each other: who or what a name is, other sentences tell.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from kerasllm.data.tables import read_lines
from kerasllm.data.tag_schemes import OUTSIDE, Scheme, WrongTag, guess_scheme, split_tag, to_bio
from kerasllm.errors import UserError

DOCUMENT = "-DOCSTART-"
TAGS = "tags"
"""The field whose column is turned into BIO."""
_LINES_TO_KNOW_IT = 200


class Sentence(NamedTuple):
    """Lines of a file that belong together."""

    lines: list[tuple[int, list[str]]]
    """The number of each, and its columns."""
    begins_document: bool


def read_sentences(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of a file, plain or .gz.

    Raises:
        UserError: unreadable, or a line has another number of columns than the first one.
    """
    lines: list[tuple[int, list[str]]] = []
    first: tuple[int, int] | None = None
    begins_document = True
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split()
        if not cells or cells[0] == DOCUMENT:
            if lines:
                yield Sentence(lines, begins_document)
                lines, begins_document = [], False
            begins_document |= bool(cells)
            continue
        first = first or (number, len(cells))
        if len(cells) != first[1]:
            raise UserError(
                f"{path}:{number}: has {len(cells)} columns, but line {first[0]} has {first[1]}; "
                "white space separates columns, and no word may hold any"
            )
        lines.append((number, cells))
    if lines:
        yield Sentence(lines, begins_document)


def _passages(sentences: Iterable[Sentence], max_words: int) -> Iterator[list[Sentence]]:
    """Sentences of a document that follow each other, as many as have no more than so many words; one at least."""
    passage: list[Sentence] = []
    for sentence in sentences:
        num_words = sum(len(each.lines) for each in (*passage, sentence))
        if passage and (sentence.begins_document or num_words > max_words):
            yield passage
            passage = []
        passage.append(sentence)
    if passage:
        yield passage


def _columns_of(path: Path, sentence: Sentence, columns: Mapping[str, int], scheme: Scheme) -> dict[str, list[str]]:
    """Field -> what its column holds, word by word; `tags` as BIO."""
    number, cells = sentence.lines[0]
    for name, column in columns.items():
        if not -len(cells) <= column < len(cells):
            raise UserError(
                f"{path}:{number}: data.columns.{name}: no column {column}; the file has {len(cells)}, from 0 to "
                f"{len(cells) - 1}, and -1 is the last one"
            )
    values = {name: [cells[column] for _, cells in sentence.lines] for name, column in columns.items()}
    if TAGS in values:
        try:
            values[TAGS] = to_bio(values[TAGS], scheme)
        except WrongTag as error:
            raise UserError(
                f"{path}:{sentence.lines[error.index][0]}: {error}; put it right, or name another data.scheme"
            ) from error
    return values


def read_conll(
    path: Path, columns: Mapping[str, int], scheme: Scheme, max_words: int | None = None
) -> Iterator[dict[str, str]]:
    """Yield the records of a file: field -> what its column holds, word after word, with single spaces.

    Args:
        columns: field -> number of its column, from 0, or from -1 backwards; `tags` are turned into BIO.
        scheme: of the tags in the file.
        max_words: of a record that consists of several sentences of a document; None makes each one a record.

    Raises:
        UserError: see `read_sentences`; there is no such column, or a tag is none of the scheme.
    """
    for passage in _passages(read_sentences(path), max_words or 0):
        parts = [_columns_of(path, sentence, columns, scheme) for sentence in passage]
        yield {name: " ".join(word for part in parts for word in part[name]) for name in columns}


def is_conll(path: Path) -> bool:
    """Whether a file looks like one: most lines have several columns, as many as each other, and a tag in the last one,
    and among these is that of an entity. What is wrong with the few others is said when they are read."""
    try:
        lines = [line.split() for line in islice(read_lines(path), _LINES_TO_KNOW_IT)]
    except UserError:
        return False
    rows = [cells for cells in lines if cells and cells[0] != DOCUMENT]
    most = len(rows) // 2 + 1
    (num_columns, num_rows), *_ = Counter(map(len, rows)).most_common(1) or [(0, 0)]
    tags = [tag for *_, tag in rows if tag == OUTSIDE or (split_tag(tag)[0] in {*"BIES"} and split_tag(tag)[1])]
    return num_columns > 1 and num_rows >= most and len(tags) >= most and any(tag != OUTSIDE for tag in tags)


@dataclass
class ConllFile:
    """What a file holds."""

    scheme: Scheme
    lengths: list[int] = field(default_factory=list)
    """Characters of each sentence, spaces included."""
    entities: Counter[str] = field(default_factory=Counter)
    """Type -> how many there are."""


def look_at(path: Path) -> ConllFile:
    """What a file with words in its first column and tags in its last one holds.

    Raises:
        UserError: see `read_conll`.
    """
    scheme = guess_scheme([cells[-1] for _, cells in sentence.lines] for sentence in read_sentences(path))
    found = ConllFile(scheme)
    for record in read_conll(path, {"words": 0, TAGS: -1}, scheme):
        found.lengths.append(len(record["words"]))
        found.entities.update(split_tag(tag)[1] for tag in record[TAGS].split() if tag.startswith("B-"))
    return found
