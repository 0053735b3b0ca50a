"""Somebody's table: which column is taken for the text, which for the label, and of what kind it is."""

import json

import pytest

from kerasllm.data.columns import Column, guess_kind, guess_label, guess_texts, read_columns
from kerasllm.errors import UserError

ROWS = [(f"text number {n} is this one", f"{n}", ["red", "blue"][n % 2], "x", n / 8) for n in range(40)]


@pytest.fixture
def read(tmp_path):
    """read(names, rows) gives the path of a csv file and its columns."""

    def read(names, rows=ROWS):
        path = tmp_path / "a.csv"
        path.write_text("\n".join([names, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
        return path, read_columns(path)[0]

    return read


@pytest.mark.parametrize(
    ("names", "label"),
    [("a,b,c,d,e", "c"), ("a,b,c,d,Label", "Label"), ("a,class,c,d,label", "label"), ("a,b,c,score,e", "score")],
)
def test_the_label_has_a_known_name_or_few_values(read, names, label):
    assert guess_label(*read(names)).name == label


def test_no_label(read):
    path, columns = read("a,b", [row[:2] for row in ROWS])
    with pytest.raises(UserError, match=r"no column has few different values.* --label \(the file has a, b\)"):
        guess_label(path, columns)


def test_the_text_is_the_longest_and_a_pair_is_known_by_its_names(read):
    assert [column.name for column in guess_texts(*read("a,b,c,d,e"), "c")] == ["a"]
    rows = [("Why?", "Because it is so.", "yes", f"a much longer explanation {n}") for n in range(8)]
    assert [column.name for column in guess_texts(*read("text_a,text_b,y,z", rows), "y")] == ["z"]
    names = "sentence1,sentence2,y"
    assert [c.name for c in guess_texts(*read(names, [row[:3] for row in rows]), "y")] == ["sentence1", "sentence2"]
    with pytest.raises(UserError, match=r"no column holds text; name it with --text \(the file has a, b, and b is the"):
        guess_texts(*read("a,b", [(n, "red") for n in range(9)]), "b")


@pytest.mark.parametrize(
    ("cells", "kind", "separator"),
    [
        (["red", "blue", "red"], "one_label", ","),
        (["0", "1", "1.0"], "one_label", ","),
        (["1", "2.5", "3"], "number", ","),
        ([str(n) for n in range(30)], "number", ","),
        (["red", "red;blue", "blue;green", "green", "green;red"], "several_labels", ";"),
        (["Washington, D.C.", "New York"], "one_label", ","),
    ],
)
def test_the_kind_of_label(cells, kind, separator):
    assert guess_kind(Column("label", cells)) == (kind, separator)


def test_many_rows_are_looked_at_evenly(read, monkeypatch):
    """A table that is sorted by its label has all its labels in what is looked at."""
    monkeypatch.setattr("kerasllm.data.columns.MAX_ROWS", 10)
    path, columns = read("n,label", [(n, "low" if n < 60 else "high") for n in range(100)])
    assert [int(cell) for cell in columns["n"].cells] == list(range(0, 100, 16))
    assert columns["label"].counts == {"low": 4, "high": 3}
    assert read_columns(path)[1] == 100


def test_tables_of_other_kinds_and_bad_ones(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"t": "x", "n": None, "l": [1]}) + "\n" for _ in range(3)))
    columns, num_rows = read_columns(tmp_path / "a.jsonl")
    assert num_rows == 3
    assert {name: column.cells for name, column in columns.items()} == {"t": ["x"] * 3, "n": [], "l": []}
    (tmp_path / "semicolons.csv").write_text("text;label\nx;y\n")
    (tmp_path / "empty.csv").write_text("text,label\n")
    for name, message in {
        "semicolons.csv": "has one column, 'text;label'; separate the columns with commas",
        "empty.csv": "holds no records",
        "no.csv": "no such file",
        "a.xlsx": r"has no known extension; use \.csv",
    }.items():
        with pytest.raises(UserError, match=message):
            read_columns(tmp_path / name)
