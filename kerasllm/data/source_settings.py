"""What a recipe can say of where its records come from: the section `data`, one class per source. No TensorFlow."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kerasllm.settings import Settings

PICTURE, LABEL, NAME = "image", "label", "name"
"""The fields of a picture: the content of its file, what it shows, and how it is called."""
TABLE_KINDS = (".csv", ".tsv", ".jsonl", ".parquet")


def table_kind(file: str) -> str:
    """The extension that says how a table is written: `.csv` for both `a.csv` and `a.csv.gz`; "" if there is none."""
    name = file.removesuffix(".gz")
    kind = name[name.rfind(".") :] if "." in name else ""
    return "" if kind == ".parquet" and file.endswith(".gz") else kind


class SplitSettings(Settings):
    """What every kind of source shares: a required `train` split, and `validation` and `test` if there are any."""

    @property
    def splits(self) -> list[str]:
        """The splits that the recipe names, in the order train, validation, test."""
        return [split for split in ("train", "validation", "test") if getattr(self, split) is not None]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of each record."""
        return tuple(self.columns)


class ParallelTextSettings(SplitSettings):
    """Plain text files with one record a line: line n of every file of a split belongs to the same record."""

    source: Literal["parallel_text"]
    train: dict[str, str] = Field(min_length=1)
    """Field -> file, relative to the data directory; `.gz` is unpacked while reading."""
    validation: dict[str, str] | None = None
    test: dict[str, str] | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of each record."""
        return tuple(self.train)

    @model_validator(mode="after")
    def _check_fields(self) -> "ParallelTextSettings":
        for split in self.splits:
            if set(getattr(self, split)) != set(self.train):
                raise ValueError(f"{split} must name a file for the same fields as train: {', '.join(self.train)}")
        return self


class FileSettings(SplitSettings):
    """One file for each split, or shares of the training file."""

    train: str
    """File, relative to the data directory."""
    validation: str | float | None = None
    """File, or the share of the training file that is split off; which records these are follows from their texts."""
    test: str | float | None = None
    """The same."""

    @property
    def shares(self) -> dict[str, float]:
        """Split -> the share of the training file that belongs to it."""
        return {split: share for split in ("validation", "test") if isinstance(share := getattr(self, split), float)}

    @field_validator("validation", "test")
    @classmethod
    def _check_share(cls, file: str | float | None) -> str | float | None:
        if isinstance(file, float) and not 0 < file < 1:
            raise ValueError(f"must be a file, or a share of the training file between 0 and 1, found {file:g}")
        return file

    @model_validator(mode="after")
    def _check_shares(self) -> "FileSettings":
        if sum(self.shares.values()) >= 1:
            raise ValueError("the shares of validation and test leave nothing to train on; lower them")
        return self


class TableSettings(FileSettings):
    """Tables with named columns: csv, tsv (without quoting), jsonl (each also as .gz) or parquet."""

    source: Literal["table"]
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    """Of all files, whatever they are called; null goes by the extension of each."""
    columns: dict[str, str] = Field(min_length=1)
    """Field -> name of the column that holds it."""
    header: dict[Literal["train", "validation", "test"], tuple[str, ...]] = {}
    """Split -> names of all columns, for a csv or tsv file whose first line is a record already."""
    extra_cells: Literal["refuse", "ignore"] = "refuse"
    """What becomes of a row of a csv or tsv file that has more cells than there are columns: it ends the reading, or
    the cells after the last column are left out. A row with fewer is refused in any case."""
    join_lists: bool = False
    """A cell that is a list of words, in jsonl or parquet, is read as these with single spaces between them."""

    def kind_of(self, file: str) -> str:
        """How a file is written: one of `TABLE_KINDS`."""
        return f".{self.format}" if self.format else table_kind(file)

    @model_validator(mode="after")
    def _check_files(self) -> "TableSettings":
        for split in self.splits:
            file = getattr(self, split)
            if isinstance(file, str) and not self.format and table_kind(file) not in TABLE_KINDS:
                raise ValueError(
                    f"{split}: '{file}' has no known extension; use {', '.join(TABLE_KINDS)}, all but the last also "
                    ".gz, or say what it is with `format`"
                )
        for split in self.header:
            if not isinstance(getattr(self, split), str):
                raise ValueError(f"header.{split}: {split} is no file")
        return self


class ConllSettings(FileSettings):
    """Files with one word a line, plain or .gz; see `data/conll.py`."""

    source: Literal["conll"]
    columns: dict[str, int] = Field(default={"words": 0, "tags": -1}, min_length=1)
    """Field -> number of the column that holds it, from 0, or backwards from -1, the last one."""
    scheme: Literal["iob1", "bio", "bioes"] = "bio"
    """How the file writes entities down, see `data/tag_schemes.py`; the records have BIO in any case."""


class PicturesSettings(FileSettings):
    """Folders of pictures, or tar archives of such: the folder that a picture lies in is its label.

    A folder in an archive is named as if it were unpacked: `animals.tar.gz/train`.
    """

    source: Literal["pictures"]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of each record."""
        return (PICTURE, LABEL, NAME)


class IdxPartSettings(Settings):
    """A split of pictures as MNIST has them, relative to the data directory, plain or .gz."""

    image: str
    """File of the pictures."""
    label: str
    """File of their labels."""


class IdxSettings(FileSettings):
    """Pairs of IDX files, one of grey pictures and one of labels."""

    source: Literal["idx"]
    train: IdxPartSettings
    validation: IdxPartSettings | float | None = None
    """Files, or the share of the training pictures that is split off; which these are follows from their pixels."""
    test: IdxPartSettings | float | None = None
    """The same."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of each record."""
        return (PICTURE, LABEL, NAME)


class DocumentsSettings(SplitSettings):
    """Text files with documents of any length; each is one record with the field `text`, a line a paragraph."""

    source: Literal["documents"]
    train: str | tuple[str, ...]
    """File or files, relative to the data directory; `.gz` is unpacked while reading. No document reaches over two."""
    validation: str | tuple[str, ...] | float | None = None
    """File or files, or the share of the training documents that is split off; which follows from their texts."""
    test: str | tuple[str, ...] | float | None = None
    """The same."""
    document_start: str | None = None
    """A regular expression: a document begins with each line that it is found in; null: blank lines are in between."""
    escapes: Literal["none", "wikitext"] = "none"
    """`wikitext` turns ` @-@ `, ` @,@ ` and ` @.@ ` back into the character, and `<unk>` into `[UNK]`."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of each record."""
        return ("text",)

    @property
    def shares(self) -> dict[str, float]:
        """Split -> the share of the training documents that belongs to it."""
        return {split: share for split in ("validation", "test") if isinstance(share := getattr(self, split), float)}

    def files(self, split: str) -> tuple[str, ...]:
        """The files that the documents of a split stand in."""
        files = self.train if split in self.shares else getattr(self, split)
        return (files,) if isinstance(files, str) else files

    @field_validator("document_start")
    @classmethod
    def _check_expression(cls, expression: str | None) -> str | None:
        try:
            re.compile(expression or "")
        except re.error as error:
            raise ValueError(f"'{expression}' is no regular expression: {error}") from error
        return expression

    @model_validator(mode="after")
    def _check_files(self) -> "DocumentsSettings":
        shares = self.shares.values()
        if not all(0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise ValueError("the shares of validation and test must be above 0, and together below 1")
        for split in self.splits:
            if not self.files(split):
                raise ValueError(f"{split} names no file")
        return self


class TfdsSettings(SplitSettings):
    """A dataset of TensorFlow Datasets, by its name."""

    source: Literal["tfds"]
    name: str
    """As TFDS writes it: `name`, `name/config` or `name/config:version`."""
    train: str
    """Split in the language of TFDS, such as `train` or `train[:90%]`."""
    validation: str | None = None
    test: str | None = None
    columns: dict[str, str] = Field(min_length=1)
    """Field -> feature of the dataset; the part of a nested feature is written `translation/en`."""


BUILT_IN_FIELDS = {
    "dates": ("source", "target"),
    "date_languages": ("text", "label"),
    "date_mentions": ("words", "tags"),
    "digits": (PICTURE, LABEL, NAME),
    "python_docs": ("text",),
    "slopes": ("slope_x", "slope_y"),
}
"""Built-in set -> the fields of its records."""


class BuiltInSettings(SplitSettings):
    """A set that is generated on this machine, the same for the same seed."""

    source: Literal["built_in"]
    name: Literal["dates", "date_languages", "date_mentions", "digits", "python_docs", "slopes"]
    train: int = Field(ge=1)
    """Number of records; of `python_docs`, which differ between versions of Python, at most."""
    validation: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    """Apart from the seed of the training, so that runs with several seeds are tested on the same records."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of each record."""
        return BUILT_IN_FIELDS[self.name]


class SquadPartSettings(Settings):
    """A split of questions: a file, or some of its articles. A file alone may be written as its name."""

    file: str
    """In the form of SQuAD 1.1 or 2.0, relative to the data directory; `.gz` is unpacked while reading."""
    articles: str | None = None
    """Those from the first number up to the second, counted from 0, as in Python: `0:36`, `-10:`. null takes all."""

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @field_validator("articles")
    @classmethod
    def _check_range(cls, articles: str | None) -> str | None:
        if articles is not None and not re.fullmatch(r"(-?\d+)?:(-?\d+)?", articles):
            raise ValueError(f"must be a range of numbers such as '0:36' or '-10:', found '{articles}'")
        return articles


class SquadSettings(SplitSettings):
    """Questions about contexts, in the json of SQuAD 1.1 or 2.0, where a question may have no answer."""

    source: Literal["squad"]
    train: SquadPartSettings
    validation: SquadPartSettings | None = None
    test: SquadPartSettings | None = None
    on_missing_answer: Literal["drop", "error"] = "drop"
    """What happens to a question with an answer that does not occur in its context: cleaning counts it and drops it
    from training, or reading ends with an error."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of each record."""
        return ("question", "answers", "context")


class NoDataSettings(SplitSettings):
    """No records at all: for pretrained weights that answer as they are, `training.train_steps: 0`."""

    source: Literal["none"]
    train: None = None
    validation: None = None
    test: None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of each record."""
        return ()


DataSettings = Annotated[
    ParallelTextSettings
    | TableSettings
    | ConllSettings
    | SquadSettings
    | PicturesSettings
    | IdxSettings
    | DocumentsSettings
    | TfdsSettings
    | BuiltInSettings
    | NoDataSettings,
    Field(discriminator="source"),
]
