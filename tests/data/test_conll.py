"""Words and tags from files: schemes by hand, shares, lists in a table, and what a person reads of a wrong file."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from kerasllm.data.columns import guess_format
from kerasllm.data.conll import look_at
from kerasllm.data.source_settings import ConllSettings, TableSettings
from kerasllm.data.sources import read_records
from kerasllm.data.tag_schemes import WrongTag, allowed_by_bio, guess_scheme, to_bio
from kerasllm.errors import UserError

FILE = """\
-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC

West\tNN\tI-NP\tI-LOC
Ham NN I-NP I-ORG
Leeds NN I-NP B-ORG
United NN I-NP I-ORG
-DOCSTART- -X- O O
. . O O
"""
RECORDS = [
    {"words": "EU rejects German", "tags": "B-ORG O B-MISC"},
    {"words": "West Ham Leeds United", "tags": "B-LOC B-ORG B-ORG I-ORG"},
    {"words": ".", "tags": "O"},
]


@pytest.fixture
def read(tmp_path):
    """read(content, key=value, ...) is all records of the training split of a file."""

    def read(content, split="train", name="a.txt", **settings):
        (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
        data = ConllSettings(**{"source": "conll", "train": name, "scheme": "iob1", **settings})
        return list(read_records(data, split, tmp_path))

    return read


@pytest.mark.parametrize(
    ("scheme", "tags", "bio"),
    [
        ("iob1", "I-A I-A O I-A B-A I-A I-B O I-B", "B-A I-A O B-A B-A I-A B-B O B-B"),
        ("iob1", "B-A I-A B-B", "B-A I-A B-B"),
        ("bio", "B-A I-A O B-A B-A B-x-y I-x-y", "B-A I-A O B-A B-A B-x-y I-x-y"),
        ("bioes", "B-A E-A O S-A S-A B-B I-B E-B", "B-A I-A O B-A B-A B-B I-B I-B"),
        ("iob1", "", ""),
    ],
)
def test_each_scheme_as_bio(scheme, tags, bio):
    assert to_bio(tags.split(), scheme) == bio.split()


@pytest.mark.parametrize(
    ("scheme", "tags", "index", "message"),
    [
        ("bio", "O I-A", 1, r"tag 'I-A' after 'O' is not bio, where an entity begins with B-A"),
        ("bio", "I-A", 0, r"tag 'I-A' at the beginning of a sentence is not bio"),
        ("bio", "B-A I-B", 1, r"tag 'I-B' after 'B-A'"),
        ("bio", "B-A E-A", 1, r"tag 'E-A' is none of bio, which has O, B-TYPE, I-TYPE"),
        ("iob1", "O X", 1, r"tag 'X' is none of iob1"),
        ("iob1", "B-", 0, r"tag 'B-' is none of iob1"),
        ("iob1", "O-A", 0, r"tag 'O-A' is none of iob1"),
        ("bioes", "B-A O", 0, r"tag 'B-A' before 'O' is not bioes: the entity has no end"),
        ("bioes", "O B-A", 1, r"tag 'B-A' before the end of the sentence"),
        ("bioes", "B-A E-B", 0, r"tag 'B-A' before 'E-B'"),
        ("bioes", "S-A I-A E-A", 1, r"tag 'I-A' is not bioes here, where no entity was begun with B-A"),
    ],
)
def test_a_tag_that_is_none(scheme, tags, index, message):
    with pytest.raises(WrongTag, match=message) as caught:
        to_bio(tags.split(), scheme)
    assert caught.value.index == index


def test_the_scheme_is_guessed():
    assert guess_scheme([["O", "B-A", "I-A"], ["B-A", "B-A"]]) == "bio"
    assert guess_scheme([["B-A", "I-A"], ["O", "I-A"]]) == "iob1"
    assert guess_scheme([["B-A", "I-B"]]) == "iob1"
    assert guess_scheme([["O", "S-A"]]) == "bioes"


def test_what_bio_allows():
    allowed, starts = allowed_by_bio(["B-A", "B-B", "I-A", "I-B", "O"])
    assert starts == [True, True, False, False, True]
    assert allowed[0] == allowed[2] == [True, True, True, False, True]
    assert allowed[4] == starts


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_file(read, name):
    assert read(FILE, name=name) == RECORDS
    assert read(FILE.replace("\n", "\r\n"), name=name) == RECORDS


def test_columns_that_are_named(read):
    assert read(FILE.replace(" I-NP ", " B-NP "), columns={"words": 1, "tags": 2})[0] == {
        "words": "NNP VBZ JJ",
        "tags": "B-NP B-VP B-NP",
    }


def test_shares_follow_from_the_words_alone(read):
    content = "".join(f"word{n % 40} {tag}\n\n" for n in range(80) for tag in ("O", "B-A"))
    settings = {"scheme": "bio", "validation": 0.3, "test": 0.2}
    splits = {split: read(content, split, **settings) for split in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == 160
    words = {split: {record["words"] for record in records} for split, records in splits.items()}
    assert not words["train"] & (words["validation"] | words["test"])
    assert len(words["validation"]) > 4 < len(words["test"])
    assert all(len([r for r in splits["test"] if r["words"] == word]) == 4 for word in words["test"])


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("a O\n\nb x I-A\n", {}, r"a\.txt:3: has 3 columns, but line 1 has 2; white space separates columns"),
        (
            "a O\n\nb O\nc I-A\n",
            {"scheme": "bio"},
            r"a\.txt:4: tag 'I-A' after 'O' is not bio.*; put it right, or name",
        ),
        ("a O\nb U-A\n", {}, r"a\.txt:2: tag 'U-A' is none of iob1"),
        (
            "\na\n",
            {"columns": {"words": 0, "tags": 1}},
            r"a\.txt:2: data\.columns\.tags: no column 1; the file has 1, f",
        ),
        ("\n-DOCSTART- O\n", {}, r"a\.txt: holds no records"),
    ],
)
def test_bad_files(read, content, settings, message):
    with pytest.raises(UserError, match=message):
        read(content, **settings)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_lists_of_a_table(tmp_path, name):
    rows = [{"w": ["EU", "rejects"], "t": ["B-ORG", "O"]}, {"w": ["German"], "t": ["B-MISC"]}]
    if name == "a.parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"words": "w", "tags": "t"}
    data = TableSettings(source="table", train=name, columns=columns, join_lists=True)
    assert list(read_records(data, "train", tmp_path)) == [
        {"words": "EU rejects", "tags": "B-ORG O"},
        {"words": "German", "tags": "B-MISC"},
    ]


@pytest.mark.parametrize(("word", "shown"), [("New York", "'New York'"), ("", "''"), (7, "7")])
def test_lists_of_something_else(tmp_path, word, shown):
    (tmp_path / "a.jsonl").write_text(json.dumps({"w": ["in", word], "t": "O O"}))
    data = TableSettings(source="table", train="a.jsonl", columns={"words": "w", "tags": "t"}, join_lists=True)
    with pytest.raises(UserError, match=rf"a\.jsonl:1: column 'w': 2 of its list is {shown}; a word without white sp"):
        list(read_records(data, "train", tmp_path))


def test_what_a_file_holds(tmp_path):
    (tmp_path / "a.csv").write_text(FILE)
    assert guess_format(tmp_path / "a.csv") == "tagged words", "its content counts"
    found = look_at(tmp_path / "a.csv")
    assert (found.scheme, found.lengths) == ("iob1", [17, 21, 1])
    assert found.entities == {"ORG": 3, "MISC": 1, "LOC": 1}


@pytest.mark.parametrize(
    "content",
    [
        "text,label\nall is well,O\n",
        "a O\nb O\n",
        "a B-X\nb c B-X\n",
        "I-A\nO\n",
        "",
        "word tag\na B-X\n",
        "\xff",
        "text\tlabel\nsome text\tB-cell\nmore text than this\tO\n",
    ],
)
def test_what_is_a_table(tmp_path, content):
    (tmp_path / "a.tsv").write_bytes(content.encode("latin1"))
    assert guess_format(tmp_path / "a.tsv") == "table"
