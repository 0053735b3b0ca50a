"""A recipe file is read strictly: each mistake is one line with file, line, key and what to do."""

import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest

from kerasllm.errors import UserError, did_you_mean
from kerasllm.settings import Settings, apply_overrides, build_settings, load_document


class Pair(Settings):
    source: str
    target: str


class ParallelText(Settings):
    source: Literal["parallel_text"]
    train: Pair
    more: tuple[Pair, ...] = ()


class Table(Settings):
    source: Literal["table"]
    train: Path
    columns: dict[str, str] = {}


class Training(Settings):
    seed: int
    rate: float = pydantic.Field(default=1e-3, gt=0)
    warmup_steps: int = 10
    train_steps: int = 100
    shuffle: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    replicas: int | Literal["all"] = "all"
    sizes: tuple[int, ...] = ()

    @pydantic.field_validator("train_steps")
    @classmethod
    def check_train_steps(cls, value: int) -> int:
        if value == 13:
            raise ValueError("13 steps bring bad luck; take 14")
        return value

    @pydantic.model_validator(mode="after")
    def check_warmup(self) -> "Training":
        if self.warmup_steps > self.train_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is longer than training ({self.train_steps})")
        return self


class Recipe(Settings):
    data: Annotated[ParallelText | Table, pydantic.Field(discriminator="source")]
    training: Training


RECIPE = """# a comment
data:
  source: parallel_text
  train: {source: a.en, target: a.de}
training:
  seed: 3
  rate: 1e-3
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds a Recipe from a text, written as r.yaml in the working directory, and overrides."""
    monkeypatch.chdir(tmp_path)

    def build(text: str = RECIPE, *overrides: str) -> Recipe:
        Path("r.yaml").write_text(text, encoding="utf-8")
        return build_settings(Recipe, apply_overrides(load_document("r.yaml"), overrides))

    return build


def test_defaults_then_recipe_then_overrides(build):
    recipe = build(RECIPE, "training.seed=4", "training.sizes=[1, 2]", "training.replicas=2")
    assert recipe.training.seed == 4
    assert recipe.training.rate == 1e-3
    assert recipe.training.sizes == (1, 2)
    assert recipe.training.replicas == 2
    assert recipe.training.warmup_steps == 10
    assert recipe.data.train.target == "a.de"


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("5E-4", 5e-4), ("2", 2), ("1_000", 1000), (".5", 0.5)])
def test_numbers_as_people_write_them(build, text, value):
    rate = build(RECIPE, f"training.rate={text}").training.rate
    assert rate == value
    assert isinstance(rate, float)


def test_a_whole_section_can_be_overridden(build):
    recipe = build(RECIPE, "data={source: table, train: 2020-01-01, columns: {a: b}}")
    assert recipe.data == Table(source="table", train=Path("2020-01-01"), columns={"a": "b"})


MISTAKES = [
    ("rate", "rat", "r.yaml:7: training.rat: unknown key; did you mean 'rate'?"),
    ("target: a.de", "targets: a.de", "r.yaml:4: data.train.targets: unknown key; did you mean 'target'?"),
    ("data:", "zzz: 1\ndata:", "r.yaml:2: zzz: unknown key; use one of data, training"),
    ("seed: 3", "seed: abc", 'r.yaml:6: training.seed: must be an integer, found "abc"'),
    ("seed: 3", "seed: '3'", 'r.yaml:6: training.seed: must be an integer, found "3"'),
    ("seed: 3", "seed: 3.0", "r.yaml:6: training.seed: must be an integer, found 3.0"),
    ("seed: 3", "seed: true", "r.yaml:6: training.seed: must be an integer, found true"),
    ("1e-3", "true", "r.yaml:7: training.rate: must be a number, found true"),
    ("1e-3", "0", "r.yaml:7: training.rate: must be greater than 0.*, found 0"),
    ("1e-3", ".inf", "r.yaml:7: training.rate: must be a finite number, found Infinity"),
    ("1e-3", "\n", "r.yaml:7: training.rate: must be a number, found null"),
    ("  seed: 3\n", "", "r.yaml:5: training.seed: is missing"),
    ("seed: 3", "seed: 3\n  seed: 4", "r.yaml:7: training.seed: given twice, first in line 6"),
    ("seed: 3", "seed: 3\n  shuffle: yes", 'r.yaml:7: training.shuffle: must be true or false, found "yes"'),
    (
        "seed: 3",
        "seed: 3\n  replicas: some",
        "r.yaml:7: training.replicas: must be an integer or 'all', found \"some\"",
    ),
    ("seed: 3", "seed: 3\n  precision: half", "training.precision: must be 'float32' or 'bfloat16', found \"half\""),
    ("seed: 3", "seed: 3\n  sizes:\n    - 1\n    - b", 'r.yaml:9: training.sizes[1]: must be an integer, found "b"'),
    ("seed: 3", "seed: 3\n  sizes: 4", "r.yaml:7: training.sizes: must be a list, found 4"),
    ("seed: 3", "seed: 3\n  train_steps: 13", "r.yaml:7: training.train_steps: 13 steps bring bad luck; take 14"),
    ("seed: 3", "seed: 3\n  warmup_steps: 900", "r.yaml:5: training: warmup_steps (900) is longer than training (100)"),
    ("a.de}", "3}", "r.yaml:4: data.train.target: must be text, found 3"),
    (", target: a.de", "", "r.yaml:4: data.train.target: is missing"),
    ("a.de}", "a.de}\n  more:\n  - {source: b}", "r.yaml:6: data.more[0].target: is missing"),
    (
        "parallel_text",
        "parallel_txt",
        "r.yaml:3: data.source: unknown value \"parallel_txt\"; did you mean 'parallel_text'?",
    ),
    ("  source: parallel_text\n", "", "r.yaml:2: data.source: is missing; use one of parallel_text, table"),
    ("  train: {source: a.en, target: a.de}", "  train: 1", "r.yaml:4: data.train: must be a section of"),
    ("seed: 3", "seed: !!python/object:os.system 3", "r.yaml:6: training.seed: the tag .* is not allowed"),
    ("seed: 3", "seed: [", "r.yaml:8: not YAML: "),
    ("seed: 3", "seed: &a [*a]", "r.yaml: nested too deeply, or an alias that contains itself"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=str)
def test_each_mistake_names_line_key_and_remedy(build, old, new, message):
    assert old in RECIPE
    with pytest.raises(UserError, match=_pattern(message)) as caught:
        build(RECIPE.replace(old, new, 1))
    assert "\n" not in str(caught.value)


OVERRIDE_MISTAKES = [
    ("training.sed=3", "--set training.sed: unknown key; did you mean 'seed'?"),
    ("training.seed=abc", '--set training.seed: must be an integer, found "abc"'),
    ("training.train_steps=13", "--set training.train_steps: 13 steps bring bad luck; take 14"),
    (
        "training.warmup_steps=900",
        "r.yaml:5: training (with --set training.warmup_steps): warmup_steps (900) is longer",
    ),
    ("data={source: table, train: 3}", "--set data.train: must be"),
    ("training.seed.x=3", "--set training.seed.x=3: 'training.seed' is a value, not a section"),
    ("training.seed", "--set training.seed: must be section.key=value"),
    ("training..seed=1", "--set training..seed=1: must be section.key=value"),
    ("training.sizes=[", "--set training.sizes=[: not YAML: "),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDE_MISTAKES, ids=str)
def test_a_mistaken_override_is_named_as_such(build, override, message):
    with pytest.raises(UserError, match=_pattern(message)):
        build(RECIPE, override)


def test_the_unknown_key_comes_before_the_missing_one(build):
    with pytest.raises(UserError, match=r"training\.sead: unknown key; did you mean 'seed'"):
        build(RECIPE.replace("seed", "sead"))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read: No such file or directory"):
        load_document(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: 1\nb: Müll\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml:2: byte 9: not UTF-8"):
        load_document(tmp_path / "latin.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"empty\.yaml: empty"):
        load_document(tmp_path / "empty.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r'list\.yaml:1: must be `key: value` lines, found \["a"\]'):
        load_document(tmp_path / "list.yaml")


def test_settings_never_change(build):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        build().training.seed = 4


def test_lines_of_nested_keys(build):
    build(RECIPE)
    document = load_document("r.yaml")
    assert document.line(("training", "rate")) == 7
    assert document.line(("training", "absent")) == 5
    assert document.line(("absent",)) is None


def test_did_you_mean():
    assert did_you_mean("warmup_step", ["seed", "warmup_steps"]) == "did you mean 'warmup_steps'?"
    assert did_you_mean("zzz", ["b", "a"]) == "use one of a, b"


def _pattern(message: str) -> str:
    """Escapes a message for `match`, where only `.*` keeps its meaning."""
    return re.escape(message).replace(r"\.\*", ".*")
