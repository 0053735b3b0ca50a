"""From somebody's questions to a recipe that loads and prepares; once through all stages to a published model."""

import json
from pathlib import Path

import pytest

from kerasllm.data.preparation import prepare_data
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.stages.new import new

NAMES = ("Ada", "Bob", "Eva", "Kim")


def articles(number, with_none=True):
    """Each is about somebody in a town; all ask the same."""
    for index in range(number):
        name = NAMES[index % 4]
        context = f"In town number {index}, the painter {name} lives."
        asked = [
            {"question": "Who lives there?", "answers": [{"text": name, "answer_start": context.index(name)}]},
            {"question": "Which town?", "answers": [{"text": f"number {index}", "answer_start": 8}]},
        ]
        if with_none:
            asked.append({"question": "Why?", "answers": [], "is_impossible": True})
        yield {"title": f"Town {index}", "paragraphs": [{"context": context, "qas": asked}]}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(20, "towns.json") is a file of so many articles in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KERASLLM_DATA", raising=False)

    def write(number, name="towns.json", **more):
        Path(name).write_text(json.dumps({"version": "v2.0", "data": list(articles(number, **more))}))
        return Path(name)

    return write


def test_the_recipe_loads_and_prepares(write):
    report = new(write(20))
    assert report == {
        "recipe": "towns.yaml",
        "articles": 20,
        "questions": 60,
        "without_answer": 20,
        "splits": {"train": 48, "validation": 6, "test": 6},
    }
    recipe = load_recipe("towns.yaml")
    assert recipe.task == "answer"
    assert recipe.answering.allow_none
    assert recipe.training.schedule.warmup_steps == 3 * recipe.training.train_epochs // 10
    prepared = prepare_data(recipe)
    assert prepared.splits == report["splits"]
    texts = {split: set(prepared.examples(split).texts["context"]) for split in prepared.splits}
    assert len(set.union(*texts.values())) == sum(map(len, texts.values())) == 20, "no article is in two splits"
    with pytest.raises(UserError, match=r"towns\.yaml: exists already; name another file with --to"):
        new(Path("towns.json"))


def test_published_weights_and_a_data_directory(write, monkeypatch):
    file = write(3, "towns.txt", with_none=False)
    Path("bert").mkdir()
    monkeypatch.setenv("KERASLLM_DATA", "elsewhere")
    new(file, Path("r.yaml"), pretrained="bert")
    recipe = load_recipe("r.yaml")
    assert Path(recipe.model.pretrained) == Path("bert").resolve()
    assert recipe.model.model_fields_set == {"pretrained"}
    assert "tokenizer" not in recipe.model_fields_set
    assert not recipe.answering.allow_none
    assert {Path(getattr(recipe.data, split).file) for split in recipe.data.splits} == {file.resolve()}


@pytest.mark.parametrize(
    ("number", "options", "message"),
    [
        (2, {}, r"towns\.json: has 2 articles; three are needed"),
        (9, {"label": "answers"}, r"towns\.json: holds questions, and no columns to choose from; leave out --label"),
    ],
)
def test_what_cannot_be_learnt(write, number, options, message):
    with pytest.raises(UserError, match=message):
        new(write(number), **options)
    assert not Path("towns.yaml").exists()


def test_a_file_that_is_not_there(write):
    with pytest.raises(UserError, match=r"twons\.json: no such file"):
        new(Path("twons.json"))


def test_a_broken_file_leaves_no_recipe(write):
    file = write(9)
    file.write_text(file.read_text().replace('"context"', '"contxt"', 4))
    with pytest.raises(UserError, match=r"data\[0\]\.paragraphs\[0\] \(Town 0\): has no 'context', .*; it has contxt"):
        new(file)
    assert not Path("towns.yaml").exists()


ALL_STAGES = """
from kerasllm.environment import load_tensorflow; load_tensorflow()
import json, sys
from kerasllm.recipe import load_recipe
from kerasllm.stages import evaluate, export, new, train
from pathlib import Path
new.new(Path("towns.json"))
tiny = ["model={num_layers: 1, num_heads: 2, hidden_dim: 32, intermediate_dim: 32, max_sequence_length: 48}",
        "training={train_epochs: 25, peak_learning_rate: 0.01, evaluate_every_epochs: 25, best_metric: f1}",
        "tokenizer.max_vocabulary_size=100", "model.dropout=0", "model.attention_dropout=0"]
train.train(load_recipe("towns.yaml", tiny), "run")
measured = evaluate.evaluate("run", "train")
exported = export.export("run", "saved")
theirs = export.export_huggingface("run", "theirs")
print(json.dumps([measured, exported, theirs]))
"""


@pytest.mark.slow
def test_all_stages(write, tmp_path, run_python):
    """The answers of the SavedModel are compared with those of the run before it is published."""
    write(20)
    done = run_python("-c", ALL_STAGES, cwd=tmp_path, PYTHONPATH=str(Path(__file__).parent.parent))
    assert done.returncode == 0, done.stderr
    measured, exported, theirs = json.loads(done.stdout)
    rows = [json.loads(line) for line in (tmp_path / measured["predictions"]).read_text().splitlines()]
    assert [row["question"] for row in rows[:3]] == ["Who lives there?", "Which town?", "Why?"]
    assert (rows[0]["prediction"], rows[0]["start"], rows[0]["end"]) == ("Ada", 30, 33)
    assert (rows[2]["prediction"], rows[2]["start"], rows[2]["end"]) == ("", 0, 0)
    assert measured["exact_match"] > 0.9
    assert measured["records"] == 48
    assert exported["num_verified"] > 12
    assert theirs["architecture"] == "BertForQuestionAnswering"
