"""What `prepare` makes of tables of texts and labels: what is cut, labels by name, the same on every way, bad input."""

import pytest

from kerasllm.data import preparation
from kerasllm.data.preparation import prepare_data
from kerasllm.data.vocabulary import load_vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe

RECIPE = """
task: classify_text
data: {source: table, train: a.csv, columns: {text: text, label: label}}
batching: {max_sequence_length: 8}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 8, max_sequence_length: 9}
training: {train_steps: 1}
"""


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "cache"))

    def prepare(content, *overrides):
        (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
        (tmp_path / "a.csv").write_text(content, encoding="utf-8")
        return prepare_data(load_recipe(tmp_path / "r.yaml", ["tokenizer.kind=words", *overrides]), tmp_path)

    return prepare


def test_long_and_unlike_texts_are_kept_and_what_is_cut_is_counted(prepare):
    prepared = prepare("text,label\n" + "a " * 50 + ",1\nb,0\nc d e f g h i,1\n")
    examples = prepared.examples("train")
    assert (prepared.splits, examples.num_cut) == ({"train": 3}, 2)
    assert examples.lengths.max() == 8
    assert load_vocabulary(prepared.directory).labels == ("0", "1")


def test_labels_lie_ready_by_their_names(prepare):
    prepared = prepare("text,label\na,1\nb,0\nc,1\n", "classification.names={0: zero, 1: one}")
    assert load_vocabulary(prepared.directory).labels == ("one", "zero")
    examples = prepared.examples("train")
    assert list(examples.texts["label"]) == ["one", "zero", "one"]
    assert [examples.features["labels"][row].tolist() for row in range(3)] == [[1], [2], [1]]


@pytest.mark.parametrize("kind", ["one_label", "several_labels", "number"])
def test_chunks_on_several_cores_as_a_graph_give_what_one_gives(prepare, tmp_path, monkeypatch, kind):
    content = "text,label\n" + "".join(f"{'a b c d e f g h'[: 2 * (n % 8) + 1]} {n},{n % 3}\n" for n in range(40))
    expected = prepare(content, f"classification.kind={kind}").examples("train").features
    monkeypatch.setattr(preparation, "_CHUNK_RECORDS", 3)
    monkeypatch.setattr(preparation, "_TRACED_FROM_RECORDS", 1)
    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "other"))
    found = prepare(content, f"classification.kind={kind}").examples("train").features
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert [row.tolist() for row in found[name]] == [row.tolist() for row in rows], name
    assert len(found["token_ids"]) == 40


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (
            "text,label\na,1\nb,x\n",
            ["classification.kind=number"],
            r"a\.csv: data\.train: record 2 \('b'\): label 'x' is not a number",
        ),
        ("text,label\na,nan\n", ["classification.kind=number"], r"record 1 \('a'\): label 'nan' is not a number"),
        ("text,label\na,x\nb,x\n", [], r"data\.train: has no other label than 'x'"),
        (
            "text,label\na,0\nb,7\n",
            ["classification.names={0: x}"],
            r"a\.csv: data\.train: record 2: label '7' has no n",
        ),
        ("txt,label\na,x\n", [], r"no column 'text'; did you mean 'txt'\? \(the recipe names text, label; the file h"),
        ("text,label\na,x\nb,y\n", ["data.test=a.csv", "data.columns={text: text}"], r"label: is missing; the task"),
    ],
)
def test_bad_input(prepare, tmp_path, content, overrides, message):
    with pytest.raises(UserError, match=message):
        prepare(content, *overrides)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
