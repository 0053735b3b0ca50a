"""From somebody's file to a recipe: texts or pictures with labels train a classifier, tagged words a tagger.

Questions train a reader.

Without a file, from a published sentence encoder to a recipe that answers with it as it is.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

from kerasllm.data.columns import guess_format
from kerasllm.errors import UserError
from kerasllm.first_recipes.classifier import new_classifier
from kerasllm.first_recipes.encoder import new_encoder
from kerasllm.first_recipes.pictures import new_pictures
from kerasllm.first_recipes.reader import new_reader
from kerasllm.first_recipes.tagger import new_tagger


def new(
    table: Path | None = None,
    to: Path | None = None,
    text: str | None = None,
    other_text: str | None = None,
    label: str | None = None,
    pretrained: str | None = None,
) -> dict[str, Any]:
    """Look at a file, and write a commented recipe: for a classifier of the texts of a table, a tagger or a reader.

    Args:
        table: csv, tsv, jsonl or parquet; or, known by its content, a file with a word a line, or the json of SQuAD; or
            a folder of pictures in folders, or a tar archive of it; None for a recipe of task `embed` that has no data.
        to: the recipe; by default the table's name with `.yaml`, in the working directory.
        text, other_text, label: columns; what is left out is guessed from the names and the cells.
        pretrained: trained weights to begin with, as in `PretrainedBertSettings`.

    Returns:
        `recipe`, and what was found in the file, see `new_classifier`, `new_tagger`, `new_reader` and `new_pictures`.

    Raises:
        UserError: nothing can be learnt from the file, an option does not fit it, or there is a recipe already.
    """
    given = {"--text": text, "--other-text": other_text, "--label": label}
    options = ", ".join(option for option, column in given.items() if column)
    if table is None and (options or pretrained is None):
        raise UserError("new: name a table of texts and labels, or --pretrained alone for vectors of sentences")
    if table is None:
        name = pretrained.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    else:
        name = table.resolve().name.removesuffix(".gz").rpartition(".")[0] or table.resolve().name
    to = to or Path(f"{name}.yaml")
    if to.exists():
        raise UserError(f"{to}: exists already; name another file with --to")
    if table is None:
        return new_encoder(pretrained, to)
    if table.is_dir() or (table.is_file() and tarfile.is_tarfile(table)):
        if options or pretrained:
            given = options or "--pretrained"
            raise UserError(f"{table}: holds pictures, and is not to be read by that; leave out {given}")
        return new_pictures(table, to)
    if not table.is_file():
        raise UserError(f"{table}: no such file")
    content = guess_format(table)
    if content == "table":
        return new_classifier(table, to, text, other_text, label, pretrained)
    if options:
        raise UserError(f"{table}: holds {content}, and no columns to choose from; leave out {options}")
    return {"tagged words": new_tagger, "questions": new_reader}[content](table, to, pretrained)
