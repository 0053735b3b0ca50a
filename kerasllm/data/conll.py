"""Sentences with tagged words, as CoNLL writes them: a word a line, its columns with white space between them.

    EU      NNP  I-NP  I-ORG
    rejects VBZ  I-VP  O
    German  JJ   I-NP  I-MISC

A line without anything ends a sentence; one that begins with -DOCSTART- begins a document, and is no word.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from kerasllm.data.tables import read_lines
from kerasllm.data.tag_schemes import OUTSIDE, Scheme, WrongTag, guess_scheme, split_tag, to_bio
from kerasllm.errors import UserError

DOCUMENT = "-DOCSTART-"
TAGS = "tags"
"""The field whose column is turned into BIO."""
_LINES_TO_KNOW_IT = 200

Sentence = list[tuple[int, list[str]]]
"""The number of each line, and its columns."""


def read_sentences(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of a file, plain or .gz.

    Raises:
        UserError: unreadable, or a line has another number of columns than the first one.
    """
    sentence: Sentence = []
    first: tuple[int, int] | None = None
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split()
        if not cells or cells[0] == DOCUMENT:
            if sentence:
                yield sentence
                sentence = []
            continue
        first = first or (number, len(cells))
        if len(cells) != first[1]:
            raise UserError(
                f"{path}:{number}: has {len(cells)} columns, but line {first[0]} has {first[1]}; "
                "white space separates columns, and no word may hold any"
            )
        sentence.append((number, cells))
    if sentence:
        yield sentence


def read_conll(path: Path, columns: Mapping[str, int], scheme: Scheme) -> Iterator[dict[str, str]]:
    """Yield the records of a file: field -> what its column holds, word after word, with single spaces.

    Args:
        columns: field -> number of its column, from 0, or from -1 backwards; `tags` are turned into BIO.
        scheme: of the tags in the file.

    Raises:
        UserError: see `read_sentences`; there is no such column, or a tag is none of the scheme.
    """
    for sentence in read_sentences(path):
        number, cells = sentence[0]
        for name, column in columns.items():
            if not -len(cells) <= column < len(cells):
                raise UserError(
                    f"{path}:{number}: data.columns.{name}: no column {column}; the file has {len(cells)}, from 0 to "
                    f"{len(cells) - 1}, and -1 is the last one"
                )
        record = {name: [cells[column] for _, cells in sentence] for name, column in columns.items()}
        if TAGS in record:
            try:
                record[TAGS] = to_bio(record[TAGS], scheme)
            except WrongTag as error:
                raise UserError(
                    f"{path}:{sentence[error.index][0]}: {error}; put it right, or name another data.scheme"
                ) from error
        yield {name: " ".join(values) for name, values in record.items()}


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
    scheme = guess_scheme([cells[-1] for _, cells in sentence] for sentence in read_sentences(path))
    found = ConllFile(scheme)
    for record in read_conll(path, {"words": 0, TAGS: -1}, scheme):
        found.lengths.append(len(record["words"]))
        found.entities.update(split_tag(tag)[1] for tag in record[TAGS].split() if tag.startswith("B-"))
    return found
