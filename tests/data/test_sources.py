"""Every kind of source gives the same records, and each kind of bad input its one clear line."""

import gzip
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from kerasllm.data.source_settings import BuiltInSettings, ParallelTextSettings, TableSettings, TfdsSettings
from kerasllm.data.sources import read_lines, read_records, source_fingerprint
from kerasllm.errors import UserError

ROWS = [("A dog.", "Ein Hund."), ('He said "no"', "Er sagte „nein“"), ("three, four", "drei, vier")]
RECORDS = [{"source": source, "target": target} for source, target in ROWS]


@pytest.fixture
def write(tmp_path):
    """write(name, text or bytes) puts a file in the data directory, packed if the name ends with .gz."""

    def write(name, content):
        content = content.encode("utf-8") if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    return write


def parallel(source, target):
    return ParallelTextSettings(source="parallel_text", train={"source": source, "target": target})


def table(file, source="en", target="de"):
    return TableSettings(source="table", train=file, columns={"source": source, "target": target})


def read(settings, folder, split="train"):
    return list(read_records(settings, split, folder))


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_parallel_files(write, tmp_path, ending, line_end):
    write(f"a{ending}", "\ufeff" + line_end.join(source for source, _ in ROWS))  # with a mark, without a last line end
    write("b", "".join(target + line_end for _, target in ROWS))
    assert read(parallel(f"a{ending}", "b"), tmp_path) == RECORDS


def test_only_a_newline_ends_a_line(write, tmp_path):
    write("a", "one\x0btwo\u2028three\x85four\rfive\n\nsix\n")
    assert list(read_lines(tmp_path / "a")) == ["one\x0btwo\u2028three\x85four\rfive\n", "\n", "six\n"]


def tabular(separator, quote):
    cells = [("en", "id", "de"), *[(quote(source), "7", quote(target)) for source, target in ROWS]]
    return "".join(separator.join(row) + "\n" for row in cells)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", tabular(",", lambda text: '"' + text.replace('"', '""') + '"')),
        ("tsv", tabular("\t", str)),
        ("jsonl", "".join(json.dumps({"de": target, "id": 7, "en": source}) + "\n" for source, target in ROWS)),
    ],
)
def test_tables(write, tmp_path, kind, content, ending):
    write(f"a.{kind}{ending}", content)
    assert read(table(f"a.{kind}{ending}"), tmp_path) == RECORDS


def test_parquet(tmp_path):
    columns = {"en": [row[0] for row in ROWS] + [None], "n": [1.5, 2.0, float("nan"), 4.0], "other": [[1]] * 4}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", row_group_size=2)
    assert read(table("a.parquet", target="n"), tmp_path) == [
        {"source": "A dog.", "target": "1.5"},
        {"source": 'He said "no"', "target": "2.0"},
        {"source": "three, four", "target": ""},
        {"source": "", "target": "4.0"},
    ]
    with pytest.raises(UserError, match=r"a\.parquet: data\.columns\.target: no column 'm'; use one of en, n, other"):
        read(table("a.parquet", target="m"), tmp_path)
    with pytest.raises(UserError, match=r"a\.parquet:1: column 'other': holds a list; text or a number is needed"):
        read(table("a.parquet", target="other"), tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable parquet file"):
        read(table("a.parquet"), tmp_path)


def test_a_table_without_a_line_of_names(write, tmp_path):
    write("a.csv", "en,id,de\nA dog.,7,Ein Hund.\n")
    write("b.csv.gz", "A dog.,7,Ein Hund.\n")
    columns, header = {"source": "en", "target": "de"}, {"test": ("en", "id", "de")}
    settings = TableSettings(source="table", train="a.csv", test="b.csv.gz", header=header, columns=columns)
    assert read(settings, tmp_path) == read(settings, tmp_path, "test") == RECORDS[:1]
    wrong = settings.model_copy(update={"header": {"test": ("en", "id")}, "columns": {"source": "en", "target": "id"}})
    with pytest.raises(UserError, match=r"b\.csv\.gz:1: the header has 2 columns, this line 3"):
        read(wrong, tmp_path, "test")


def test_shares_of_one_table(write, tmp_path):
    """They have about the sizes that are asked for; equal records stay together, and adding others moves none."""
    rows = [f"{n},{n % 7}" for n in range(1000)]
    columns = {"source": "en", "target": "de"}
    settings = TableSettings(source="table", train="a.csv", validation=0.1, test=0.2, columns=columns)

    def split(rows):
        write("a.csv", "\n".join(["en,de", *rows]) + "\n")
        return {name: [r["source"] for r in read(settings, tmp_path, name)] for name in settings.splits}

    first = split(rows)
    assert sorted([source for part in first.values() for source in part], key=int) == [str(n) for n in range(1000)]
    assert [len(first[name]) for name in ("validation", "test")] == pytest.approx([100, 200], rel=0.25)
    more = split([*(f"new {n},5" for n in range(500)), *rows, *rows])
    for name, sources in first.items():
        assert [source for source in more[name] if not source.startswith("new")] == sources * 2
    write("a.csv", "en,de\n0,0\n")
    with pytest.raises(UserError, match=r"a\.csv: holds no records in this share; raise it; data\.test needs at least"):
        read(settings, tmp_path, "test")
    files = source_fingerprint(settings, tmp_path)
    assert list(files) == ["train/table"]


def test_csv_cells_may_hold_line_ends(write, tmp_path):
    write("a.csv", 'en,de\n"one\ntwo",zwei\n\nx\n')
    records = read_records(table("a.csv"), "train", tmp_path)
    assert next(records) == {"source": "one\ntwo", "target": "zwei"}
    with pytest.raises(UserError, match=r"a\.csv:5: the header has 2 columns, this line 1"):
        next(records)


def test_a_format_is_said_where_the_extension_does_not_say_it(write, tmp_path):
    """With the byte order mark and the line ends that such files have."""
    write("a.txt.gz", '\ufeffen\tde\r\nx\ty\r\n"z\tu, v\r\n')
    settings = TableSettings(source="table", train="a.txt.gz", format="tsv", columns={"source": "en", "target": "de"})
    assert read(settings, tmp_path) == [{"source": "x", "target": "y"}, {"source": '"z', "target": "u, v"}]
    write("a.tsv", "en,de\nx,y\n")
    settings = settings.model_copy(update={"train": "a.tsv", "format": "csv"})
    assert read(settings, tmp_path) == [{"source": "x", "target": "y"}]


def test_extra_cells_are_left_out_only_where_the_recipe_says_so(write, tmp_path):
    write("a.tsv", "en\tde\nx\ty\tz\tz\nu\tv\n")
    refusing = table("a.tsv")
    with pytest.raises(UserError, match=r"a\.tsv:2: the header has 2 columns, this line 4; .*extra_cells: ignore"):
        read(refusing, tmp_path)
    ignoring = refusing.model_copy(update={"extra_cells": "ignore"})
    assert read(ignoring, tmp_path) == [{"source": "x", "target": "y"}, {"source": "u", "target": "v"}]
    write("a.tsv", "en\tde\nx\n")
    with pytest.raises(UserError, match=r"a\.tsv:2: the header has 2 columns, this line 1; (?!.*extra_cells)"):
        read(ignoring, tmp_path)


def test_missing_cells_are_empty_texts(write, tmp_path):
    write("a.csv", "en,de\n,x\ny,\n")
    assert read(table("a.csv"), tmp_path) == [{"source": "", "target": "x"}, {"source": "y", "target": ""}]
    write("a.jsonl", '{"en": "a", "de": null}\n\n{"en": 5}\n{"en": NaN, "de": "NaN"}\n')
    assert [list(record.values()) for record in read(table("a.jsonl"), tmp_path)] == [["a", ""], ["5", ""], ["", "NaN"]]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "a.csv",
            "en,dee\nx,y\n",
            r"a\.csv: data\.columns\.target: no column 'de'; did you mean 'dee'\? "
            r"\(the recipe names en, de; the file has en, dee\)",
        ),
        ("a.jsonl", '{"en": 1, "fr": 2}', r"a\.jsonl: data\.columns\.target: no column 'de'; use one of en, fr"),
        ("a.tsv", "en\tde\nx\ty\nx\ty\tz\n", r"a\.tsv:3: the header has 2 columns, this line 3"),
        ("a.csv", 'en,de\n"x,y\nz,u\n', r"a\.csv:3: not CSV: unexpected end of data"),
        ("a.jsonl", '{"en": "a", "de": "b"}\n{"en": \n', r"a\.jsonl:2: not JSON: "),
        ("a.jsonl", '["en", "de"]\n', r"a\.jsonl:1: is no JSON object"),
        ("a.jsonl", '{"en": ["x"], "de": "y"}\n', r"a\.jsonl:1: column 'en': holds a list; text or a number is needed"),
        ("a.tsv", b"en\tde\nx\tfr\xfcher\n", r"a\.tsv:2: byte 10: not UTF-8 \(0xfc\); convert the file"),
        ("a.csv", "en,de\n", r"a\.csv: holds no records; data\.train needs at least one"),
        ("a.csv", "", r"a\.csv: holds no records"),
    ],
)
def test_bad_tables(write, tmp_path, file, content, message):
    write(file, content)
    with pytest.raises(UserError, match=message):
        read(table(file), tmp_path)


@pytest.mark.parametrize(("first", "second"), [(3, 5), (5, 3), (0, 1)])
def test_unequal_parallel_files_name_both_counts(write, tmp_path, first, second):
    write("a", "x\n" * first)
    write("b.gz", "y\n" * second)
    message = rf"a has {first} lines, .*b\.gz has {second} lines; line n of each must belong to the same record"
    with pytest.raises(UserError, match=message):
        read(parallel("a", "b.gz"), tmp_path)


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_not_utf8_names_line_and_byte(write, tmp_path, name):
    write("b", "x\n" * 3)
    write(name, "ü\nä\n".encode() + b"x\xe4\n")
    with pytest.raises(UserError, match=rf"{name}:3: byte 7: not UTF-8 \(0xe4\)"):
        read(parallel(name, "b"), tmp_path)


def test_empty_corpus(write, tmp_path):
    write("a", "")
    with pytest.raises(UserError, match=r"a, .*a: holds no records; data\.train needs at least one"):
        read(parallel("a", "a"), tmp_path)


def test_missing_and_unreadable_files(write, tmp_path):
    write("train.en", "x\n")
    with pytest.raises(UserError, match=r"train\.enn: no such file; did you mean 'train\.en'\?"):
        read(parallel("train.enn", "train.en"), tmp_path)
    with pytest.raises(UserError, match=r"nowhere/train\.en: no such file; .*--data-dir or KERASLLM_DATA"):
        read(parallel("nowhere/train.en", "train.en"), tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: is not a file"):
        read(parallel("folder", "train.en"), tmp_path)


def test_damaged_gz(tmp_path):
    packed = gzip.compress(np.random.default_rng(0).integers(97, 122, 5000, dtype=np.uint8).tobytes())
    (tmp_path / "a.gz").write_bytes(packed[:-100])
    with pytest.raises(UserError, match=r"a\.gz: damaged gz file"):
        read(parallel("a.gz", "a.gz"), tmp_path)
    (tmp_path / "a.gz").write_bytes(b"plain text\n")
    with pytest.raises(UserError, match=r"a\.gz: damaged gz file"):
        read(parallel("a.gz", "a.gz"), tmp_path)


def test_records_are_read_one_by_one(write, tmp_path):
    write("a", b"x\n" * 100_000 + b"\xff\n")
    records = read_records(parallel("a", "a"), "train", tmp_path)
    assert [next(records)["source"] for _ in range(10)] == ["x"] * 10  # the damage at the end is not met yet


def test_fingerprint_follows_the_contents_of_every_split(write, tmp_path):
    settings = TableSettings(source="table", train="a.csv", test="b.csv", columns={"source": "en", "target": "de"})
    write("a.csv", "en,de\nx,y\n")
    write("b.csv", "en,de\nx,y\n")
    first = source_fingerprint(settings, tmp_path)
    assert source_fingerprint(settings, tmp_path) == first
    write("b.csv", "en,de\nx,z\n")
    assert source_fingerprint(settings, tmp_path) != first
    write("b.csv", "en,de\nx,y\n")
    assert source_fingerprint(settings, tmp_path) == first


def test_built_in_dates():
    settings = BuiltInSettings(source="built_in", name="dates", train=30, test=20)
    assert len(read(settings, None)) == 30
    assert len(read(settings, None, "test")) == 20
    assert read(settings, None)[0].keys() == {"source", "target"}
    other = settings.model_copy(update={"seed": 1})
    assert read(other, None) != read(settings, None)


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A dataset as TFDS writes it, made here without a network."""
    import tensorflow_datasets as tfds

    class TinyPairs(tfds.core.GeneratorBasedBuilder):
        """Two splits of sentence pairs."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            pair = {"pt": tfds.features.Text(), "en": tfds.features.Text()}
            features = tfds.features.FeaturesDict({"pair": pair, "label": tfds.features.ClassLabel(num_classes=5)})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(8), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for n in range(count):
                yield n, {"pair": {"pt": f"cão {n}", "en": f"dog {n}"}, "label": n % 5}

    folder = tmp_path_factory.mktemp("tfds")
    TinyPairs(data_dir=folder).download_and_prepare()
    return folder


def tfds_settings(name="tiny_pairs", train="train", target="pair/en"):
    columns = {"source": "pair/pt", "target": target}
    return TfdsSettings(source="tfds", name=name, train=train, test="test", columns=columns)


def test_tfds(tfds_folder):
    assert sorted(record["source"] for record in read(tfds_settings(), tfds_folder)) == [f"cão {n}" for n in range(8)]
    assert len(read(tfds_settings(), tfds_folder, "test")) == 2
    for record in read(tfds_settings(train="train[:50%]", target="label"), tfds_folder):
        assert int(record["target"]) == int(record["source"][-1]) % 5
    assert read(tfds_settings(), tfds_folder) == read(tfds_settings(), tfds_folder)
    fingerprint = source_fingerprint(tfds_settings(), tfds_folder)
    assert list(fingerprint) == ["tiny_pairs/1.0.0/dataset_info.json"]


def test_tfds_mistakes(tfds_folder):
    with pytest.raises(UserError, match=r"data\.train: Unknown split 'trian'\. Should be one of \['train', 'test'\]"):
        read(tfds_settings(train="trian"), tfds_folder)
    with pytest.raises(UserError, match=r"tiny_pairs: data\.columns\.target: no column 'em'; use one of en, pt"):
        read(tfds_settings(target="pair/em"), tfds_folder)
    for call in (source_fingerprint, lambda data, folder: read(data, folder)):
        with pytest.raises(
            UserError, match=r"data\.name: TFDS cannot get 'no_such_pairs' \([^\n]*; check the name"
        ) as e:
            call(tfds_settings(name="no_such_pairs"), tfds_folder)
        assert "\n" not in str(e.value)
