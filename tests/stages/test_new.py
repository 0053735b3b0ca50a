"""From a table to a recipe that loads, prepares and learns; and what a person reads where it cannot be."""

import csv
from pathlib import Path

import pytest

from kerasllm.data.preparation import prepare_data
from kerasllm.data.sources import share_of
from kerasllm.errors import UserError
from kerasllm.first_recipes.choices import SHARES
from kerasllm.recipe import load_recipe
from kerasllm.stages.new import new

WORDS = {"good": ["fine", "lovely", "great"], "bad": ["awful", "poor", "dull"]}


def held_out(label):
    """A row that is not in the training split."""
    texts = (f"text {n}" for n in range(999))
    return 0, next(text for text in texts if share_of({"text": text, "label": label}, SHARES) != "train"), label


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(header, rows) is a table in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KERASLLM_DATA", raising=False)

    def write(header, rows, name="reviews.csv"):
        with open(name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        return Path(name)

    return write


def reviews(number=80):
    kinds = [list(WORDS)[n % 2] for n in range(number)]
    return [(n, f"Visit {n} was, to be honest, {WORDS[kind][n % 3]}", kind) for n, kind in enumerate(kinds)]


def test_the_recipe_loads_and_prepares(write):
    table = write(("id", "comment", "mood"), reviews())
    report = new(table)
    assert {key: report[key] for key in ("recipe", "text", "label", "kind")} == {
        "recipe": "reviews.yaml",
        "text": "comment",
        "label": "mood",
        "kind": "one_label",
    }
    assert report["labels"] == {"good": 40, "bad": 40}
    prepared = prepare_data(load_recipe("reviews.yaml"))
    assert prepared.splits == report["splits"]
    assert sum(report["splits"].values()) == 80
    assert prepared.examples("train").num_cut == 0
    with pytest.raises(UserError, match=r"reviews\.yaml: exists already; name another file with --to"):
        new(table)


def test_steps_follow_from_what_cleaning_leaves(write):
    """2,000 rows of 40 different ones: the rate would go on rising after the end of the training."""
    report = new(write(("id", "comment", "mood"), reviews(40) * 50))
    recipe = load_recipe("reviews.yaml")
    assert report["splits"]["train"] < 40
    assert recipe.training.schedule.warmup_steps < recipe.training.train_epochs * 2
    assert prepare_data(recipe).splits == report["splits"]


def test_columns_that_are_named(write, monkeypatch):
    rows = [(f"{n}.5", "short text", f"the other text {n}", 'a "quoted": name') for n in range(60)]
    table = write(("yes", "no", "a: b", "long"), rows)
    new(table, Path("r.yaml"), text="no", other_text="a: b", label="yes")
    recipe = load_recipe("r.yaml")
    assert recipe.data.columns == {"text": "no", "other_text": "a: b", "label": "yes"}
    assert recipe.classification.kind == "number"
    assert (recipe.classification.number_offset, recipe.classification.number_scale) == (30.0, 17.32)
    monkeypatch.setenv("KERASLLM_DATA", "elsewhere")
    new(table, Path("s.yaml"), text="no", label="yes")
    assert Path(load_recipe("s.yaml").data.train) == table.resolve()


def test_published_weights_to_begin_with(write, monkeypatch):
    table = write(("id", "comment", "mood"), reviews())
    (table.parent / "bert").mkdir()
    new(table, Path("r.yaml"), pretrained="bert")
    recipe = load_recipe("r.yaml")
    assert recipe.model.pretrained == "bert"
    assert recipe.model.model_fields_set == {"pretrained"}, "its numbers are those of the weights"
    assert "tokenizer" not in recipe.model_fields_set
    assert recipe.training.train_epochs == 3
    monkeypatch.setenv("KERASLLM_DATA", "elsewhere")
    new(table, Path("s.yaml"), pretrained="bert")
    assert Path(load_recipe("s.yaml").model.pretrained) == Path("bert").resolve()


def test_several_labels(write):
    names = ["comedy", "drama", "comedy; drama", "drama; horror", "horror"]
    new(write(("plot", "tags"), [(f"Somebody meets somebody {n}", names[n % 5]) for n in range(200)]))
    recipe = load_recipe("reviews.yaml")
    assert recipe.classification.model_dump(include={"kind", "separator"}) == {
        "kind": "several_labels",
        "separator": ";",
    }
    assert recipe.task_class.labels_in(recipe, "comedy; drama") == ["comedy", "drama"]


def sentences(number=60):
    """CoNLL's columns in IOB1, with all types in every share."""
    rows = ("{n} NN O", "West NN I-LOC", "Ham NN I-LOC", "Leeds NN I-ORG", "Leeds NN B-ORG")
    return "-DOCSTART- -X- O\n\n" + "\n".join("\n".join(rows).format(n=n) + "\n" for n in range(number))


def test_tagged_words_become_a_recipe_for_a_tagger(write, monkeypatch):
    file = write((), ())
    Path("words.conll").write_text(sentences(), encoding="utf-8")
    report = new(Path("words.conll"))
    assert report["entities"] == {"ORG": 120, "LOC": 60}
    recipe = load_recipe("words.yaml")
    assert (recipe.task, recipe.data.source, recipe.data.scheme) == ("tag", "conll", "iob1")
    prepared = prepare_data(recipe)
    assert prepared.splits == report["splits"]
    assert sum(report["splits"].values()) == 60
    assert min(report["splits"].values()) > 0
    assert prepared.examples("train").num_cut == 0
    with pytest.raises(UserError, match=r"words\.yaml: exists already; name another file with --to"):
        new(Path("words.conll"))
    with pytest.raises(UserError, match=r"words\.conll: holds tagged words, and no columns .*; leave out --label"):
        new(Path("words.conll"), Path("r.yaml"), label="tag")
    (file.parent / "bert").mkdir()
    monkeypatch.setenv("KERASLLM_DATA", "elsewhere")
    new(Path("words.conll"), Path("r.yaml"), pretrained="bert")
    assert Path(load_recipe("r.yaml").model.pretrained) == Path("bert").resolve()
    assert Path(load_recipe("r.yaml").data.train) == Path("words.conll").resolve()


def test_a_type_that_is_too_rare_and_a_wrong_line(write):
    write((), ())
    word = next(f"w{n}" for n in range(999) if share_of({"words": f"w{n}"}, SHARES) != "train")
    Path("a.txt").write_text(f"{sentences()}\n{word} NN I-ODD\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.txt: 'B-ODD' occurs in no sentence of the share to train on"):
        new(Path("a.txt"))
    assert not Path("a.yaml").exists()
    Path("a.txt").write_text(f"{sentences()}\nx I-ORG\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.txt:363: has 2 columns, but line 3 has 3"):
        new(Path("a.txt"))
    for wrong, message in (("x NN X-ORG", r"a\.txt:6: tag 'X-ORG' is none of iob1"), ("x", "a.txt:6: has 1 column")):
        Path("a.txt").write_text(sentences(3).replace("Leeds NN I-ORG", wrong, 1), encoding="utf-8")
        with pytest.raises(UserError, match=message):  # though it is among the lines that tell what the file is
            new(Path("a.txt"))


@pytest.mark.parametrize(
    ("header", "rows", "options", "message"),
    [
        (("text", "label"), reviews(), {"label": "lable"}, "the header has 2 columns, this line 3"),
        (("id", "text", "label"), reviews(), {"label": "lable"}, r"--label: no column 'lable'; did you mean 'label'\?"),
        (
            ("id", "text", "label"),
            reviews(),
            {"text": "x"},
            r"--text: no column 'x'; .*\(the file has id, text, label\)",
        ),
        (("id", "label"), [(n, n % 2) for n in range(9)], {}, "no column holds text"),
        (("text", "label"), [("some text", "good")] * 9, {}, "'label' holds one label only, 'good'; there must be two"),
        (("text", "label"), [("some text", "")] * 9, {}, "'label' holds nothing; there must be two"),
        (
            ("id", "text", "x"),
            reviews(),
            {"label": "text", "text": "x"},
            "'text' has 80 different values in 80 rows, to",
        ),
        (("id", "text", "label"), [*reviews(), held_out("odd")], {}, "label 'odd' occurs in 1 records, too few to be"),
    ],
)
def test_what_cannot_be_learnt(write, header, rows, options, message):
    table = write(header, rows)
    with pytest.raises(UserError, match=message):
        new(table, **options)
    assert not Path("reviews.yaml").exists()


def test_without_a_table_a_published_encoder_answers_as_it_is(write):
    (Path("models") / "mini").mkdir(parents=True)
    assert new(pretrained="models/mini") == {"recipe": "mini.yaml"}
    recipe = load_recipe("mini.yaml")
    assert (recipe.task, recipe.data.splits, recipe.training.train_steps) == ("embed", [], 0)
    assert recipe.model.pretrained == "models/mini"
    assert new(pretrained="hf:someone/small-1", to=Path("b.yaml")) == {"recipe": "b.yaml"}
    assert load_recipe("b.yaml").model.pretrained == "hf:someone/small-1"
    with pytest.raises(UserError, match=r"mini\.yaml: exists already; name another file with --to"):
        new(pretrained="models/mini")
    for options in ({}, {"pretrained": "models/mini", "label": "mood"}):
        with pytest.raises(UserError, match="new: name a table of texts and labels, or --pretrained alone for vectors"):
            new(**options)
