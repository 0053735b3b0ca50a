"""From the sources of a recipe to tokenized examples on disk, with a report of what cleaning did."""

import time
from pathlib import Path
from typing import Any

from kerasllm.data.cleaning import format_report
from kerasllm.data.preparation import prepare_data
from kerasllm.recipe import Recipe
from kerasllm.runs.pretrained import complete_recipe
from kerasllm.terminal import say


def prepare(recipe: Recipe, data_dir: Path | str | None = None) -> dict[str, Any]:
    """Prepare the data of a recipe, and check it if it lies ready.

    Returns:
        `directory`, `vocabulary_size`, `splits` (examples by split), `cleaning` (see `cleaning.SplitReport`),
        `cut` (records too long for the model by split, for a task that cuts them), `seconds`, `from_cache`.

    Raises:
        UserError: bad input, see `prepare_data`, or damaged files in the cache.
    """
    started = time.monotonic()
    prepared = prepare_data(complete_recipe(recipe, data_dir), data_dir)
    num_cut = {split: prepared.examples(split).num_cut for split in prepared.splits}
    say(format_report(prepared.report))
    for split, number in num_cut.items():
        if number:
            say(f"{split}: {number:,} of {prepared.splits[split]:,} records are too long for the model and cut")
    seconds = time.monotonic() - started
    place = "found in" if prepared.from_cache else "written to"
    vocabulary = f"vocabulary of {prepared.vocabulary_size:,}, " if prepared.vocabulary_size else ""
    say(f"prepare: {vocabulary}{place} {prepared.directory} in {seconds:.1f} s")
    return {
        "directory": str(prepared.directory),
        "vocabulary_size": prepared.vocabulary_size,
        "splits": prepared.splits,
        "cleaning": prepared.report,
        "cut": {split: number for split, number in num_cut.items() if number is not None},
        "seconds": round(seconds, 3),
        "from_cache": prepared.from_cache,
    }
