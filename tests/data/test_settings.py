"""The sections of a recipe that belong to the data: what is accepted, and how a mistake reads."""

import pytest

from kerasllm.data.settings import AugmentationSettings, BatchingSettings, CleaningSettings, TokenizerSettings
from kerasllm.data.source_settings import DataSettings, table_kind
from kerasllm.errors import UserError
from kerasllm.settings import Settings, build_settings, load_document


class Recipe(Settings):
    data: DataSettings
    cleaning: CleaningSettings = CleaningSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    batching: BatchingSettings = BatchingSettings()
    augmentation: tuple[AugmentationSettings, ...] = ()


DATES = "data: {source: built_in, name: dates, train: 60}\n"
TABLE = "data: {source: table, train: a.csv, columns: {source: en}, %s}"


@pytest.fixture
def build(tmp_path):
    def build(text):
        (tmp_path / "recipe.yaml").write_text(text)
        return build_settings(Recipe, load_document(tmp_path / "recipe.yaml"))

    return build


@pytest.mark.parametrize(
    ("section", "splits"),
    [
        ("{source: parallel_text, train: {source: a, target: b}, test: {target: d, source: c.gz}}", ["train", "test"]),
        ("{source: table, train: a.csv.gz, validation: b.jsonl, test: c.parquet, columns: {source: en}}", None),
        ("{source: tfds, name: x/y, train: 'train[:9%]', validation: validation, test: test, columns: {a: b}}", None),
        ("{source: built_in, name: dates, train: 60, validation: 10, test: 20, seed: 3}", None),
    ],
)
def test_every_source(build, section, splits):
    assert build(f"data: {section}").data.splits == (splits or ["train", "validation", "test"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {source: table, train: a.csv, columns: {a: b}, tset: c.csv}", "data.tset: unknown key; .*'test'"),
        ("data: {source: tabel}", "data.source: unknown value \"tabel\"; .*'table'"),
        ("data: {source: built_in, name: dates}", "data.train: is missing"),
        ("data: {source: built_in, name: dates, train: 0}", "data.train: must be at least 1"),
        ("data: {source: built_in, name: times, train: 9}", "data.name: must be 'dates'.* or 'slopes'"),
        (TABLE % "test: b.xlsx", r"data.test: 'b.xlsx' has no known extension; use \.csv, .*parquet"),
        (TABLE % "test: 1.5", "data.test: must be a file, or a share of the training file between 0 and 1, found 1.5"),
        (TABLE % "test: 0.5, validation: 0.5", "the shares of validation and test leave nothing to train on"),
        (TABLE % "test: 0.5, header: {test: [en]}", "header.test: test is no file"),
        (TABLE % "test: b.parquet.gz", "data.test: 'b.parquet.gz' has no known extension"),
        (
            "data: {source: parallel_text, train: {source: a, target: b}, test: {source: c}}",
            "test must name a file for the same fields as train: source, target",
        ),
        (f"{DATES}cleaning: {{min_characters: 9, max_characters: 8}}", "min_characters 9 exceeds max_characters 8"),
        (f"{DATES}cleaning: {{max_length_ratio: 0.5}}", "cleaning.max_length_ratio: must be at least 1"),
        (f"{DATES}tokenizer: {{kind: words, model: bpe}}", "'model' is for kind: subwords only"),
        (f"{DATES}batching: {{tokens_per_batch: 8, max_sequence_length: 9}}", "length 9 exceeds tokens_per_batch 8"),
        (f"{DATES}batching: {{tokens_per_batch: 512, global_batch_size: 8}}", "give either tokens_per_batch or global"),
        (f"{DATES}augmentation: [{{name: shift, pixels: 1}}, {{name: cut}}]", r"\[1\]\.name: unknown value .*'cutout'"),
        (f"{DATES}augmentation: [{{name: token_dropout, rate: 1}}]", r"\[0\]\.rate: must be less than 1"),
        (f"{DATES}augmentation: [{{name: shift, pixel: 1}}]", r"\[0\]\.pixel: unknown key; did you mean 'pixels'"),
        (f"{DATES}augmentation: [{{name: cutout}}]", r"augmentation\[0\]\.size: is missing"),
    ],
)
def test_a_mistake_is_named(build, text, message):
    with pytest.raises(UserError, match=rf"recipe\.yaml:\d+: .*{message}"):
        build(text)


def test_a_batch_is_so_many_tokens_or_so_many_examples():
    sizes = [BatchingSettings(), BatchingSettings(tokens_per_batch=512), BatchingSettings(global_batch_size=1)]
    assert [(each.tokens_per_batch, each.global_batch_size) for each in sizes] == [(4096, None), (512, None), (None, 1)]
    for each in sizes:  # as the recipe of a run has it, with all keys
        assert BatchingSettings(**each.model_dump()) == each


def test_table_kind():
    assert [table_kind(file) for file in ("a.csv", "b/a.x.tsv.gz", "a.parquet", "csv", "a.gz")] == [
        ".csv",
        ".tsv",
        ".parquet",
        "",
        "",
    ]
