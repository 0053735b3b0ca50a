"""Documents from files, and those of the interpreter itself."""

import ast
import gzip
import hashlib
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from kerasllm.data import python_docs
from kerasllm.data.cleaning import Cleaner
from kerasllm.data.documents import split_documents, undo_wikitext
from kerasllm.data.settings import CleaningSettings
from kerasllm.data.source_settings import BuiltInSettings, DocumentsSettings
from kerasllm.data.sources import read_records, source_fingerprint
from kerasllm.errors import UserError

WIKITEXT = (
    """ \n = First = \n \n A <unk> of 1 @,@ 000 . \n \n = = History = = \n \n More . \n \n = Second = \n Text . \n"""
)
ARTICLE = r"^ = [^=].* = $"


def test_blank_lines_are_between_documents():
    lines = ["\n", "one\n", "two\r\n", " \n", "\n", "three\n", "four"]
    assert list(split_documents(lines)) == ["one\ntwo", "three\nfour"]
    assert list(split_documents(["", " \n"])) == []


def test_an_expression_begins_documents():
    found = list(split_documents(WIKITEXT.splitlines(keepends=True), ARTICLE, "wikitext"))
    assert found == [" = First = \n A [UNK] of 1,000 . \n = = History = = \n More . ", " = Second = \n Text . "]
    assert list(split_documents(["before", "# a", "x", "# b"], "^#")) == ["before", "# a\nx", "# b"]


@pytest.mark.parametrize(
    ("line", "undone"),
    [("role @-@ playing", "role-playing"), ("2 @.@ 5 m", "2.5 m"), ("a@b @ c", "a@b @ c"), ("1 @,@ 0 @,@ 0", "1,0,0")],
)
def test_escapes_of_wikitext(line, undone):
    assert undo_wikitext(line) == undone


def settings_of(**values):
    return DocumentsSettings(source="documents", **values)


def test_files_shares_and_documents_that_end_with_their_file(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"document {n}\nline\n\n" for n in range(200)))
    with gzip.open(tmp_path / "b.gz", "wt") as file:
        file.write("the last\n")
    files = settings_of(train=("a.txt", "b.gz"), validation="b.gz")
    texts = [record["text"] for record in read_records(files, "train", tmp_path)]
    assert (len(texts), texts[0], texts[-1]) == (201, "document 0\nline", "the last")
    assert set(source_fingerprint(files, tmp_path)) == {"train/0", "train/1", "validation/0"}
    shares = settings_of(train="a.txt", validation=0.3, test=0.2)
    found = {split: [r["text"] for r in read_records(shares, split, tmp_path)] for split in shares.splits}
    assert sorted(chain(*found.values())) == sorted(texts[:-1])
    assert len(found["validation"]) == pytest.approx(60, abs=20)
    assert set(source_fingerprint(shares, tmp_path)) == {"train/0"}
    with pytest.raises(UserError, match=r"c\.txt: no such file; did you mean 'a\.txt'"):
        next(read_records(settings_of(train="c.txt"), "train", tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "a", "document_start": "("}, r"'\(' is no regular expression"),
        ({"train": "a", "validation": 0.6, "test": 0.4}, "above 0, and together below 1"),
        ({"train": ()}, "train names no file"),
    ],
)
def test_settings_that_are_wrong(values, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**values)


def test_cleaning_lets_documents_through():
    """Their length is not bounded, and their lines are normalised one by one."""
    text = "e\u0301  a \n \t \n" + "word " * 1000
    cleaner = Cleaner(CleaningSettings(), document_fields=("text",))
    (record,) = cleaner.clean("train", [{"text": text}, {"text": text}, {"text": " \n"}])
    assert record["text"] == "é a\n" + " ".join(["word"] * 1000)
    assert cleaner.report["train"].dropped == {"duplicate": 1, "empty": 1}
    other = Cleaner(CleaningSettings())
    assert list(other.clean("train", [{"text": text}])) == []
    assert other.report["train"].dropped == {"too_long": 1}


def built_in(**values):
    return BuiltInSettings(source="built_in", name="python_docs", train=10**6, validation=10**6, test=10**6, **values)


def test_the_documentation_of_the_interpreter():
    documents = dict(python_docs.all_documents())
    assert "Counter" in documents["collections"] or "Counter" in documents["collections.Counter"]
    assert "Return the next item from the iterator" in documents["builtins"].replace("\n", " ")
    assert documents["topic for"].startswith('The "for" statement\nThe "for" statement is used to iterate')
    names = {name.split(".")[0] for name in documents}
    assert not names & {"test", "idlelib", "turtledemo", "lib2to3"}
    lines = [line for text in documents.values() for line in text.split("\n")]
    assert not [line for line in lines if ">>>" in line or not line.strip()]
    assert len(documents) > 1000


def test_its_splits_make_up_the_whole_and_a_smaller_one_is_its_beginning():
    splits = {s: [r["text"] for r in read_records(built_in(), s)] for s in ("train", "validation", "test")}
    assert sorted(chain(*splits.values())) == sorted(text for _, text in python_docs.all_documents())
    for split in ("validation", "test"):
        assert len(splits[split]) == pytest.approx(len(python_docs.all_documents()) / 20, rel=0.4)
    few = python_docs.generate_python_docs("train", 5, 0)
    assert [record["text"] for record in few] == splits["train"][:5]
    assert splits["test"] != [r["text"] for r in read_records(built_in(seed=1), "test")]


def test_its_fingerprint_changes_with_python(monkeypatch):
    before = source_fingerprint(built_in(), None)
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    after = source_fingerprint(built_in(), None)
    assert before["python_docs"] == after["python_docs"]
    assert before["python"] != after["python"]


@pytest.mark.slow
def test_nothing_of_the_library_is_imported_and_each_process_reads_the_same():
    code = """
import hashlib, sys
from kerasllm.data.python_docs import all_documents
before = set(sys.modules)
documents = all_documents()
print(sorted(name.partition(".")[0] for name in set(sys.modules) - before))
print(hashlib.sha256(repr(documents).encode()).hexdigest())
"""
    here = hashlib.sha256(repr(python_docs.all_documents()).encode()).hexdigest()
    root = Path(python_docs.__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment)
    loaded, there = done.stdout.splitlines()
    assert there == here
    assert not set(ast.literal_eval(loaded)) & {"antigravity", "tkinter", "turtle", "idlelib", "unittest", "asyncio"}
