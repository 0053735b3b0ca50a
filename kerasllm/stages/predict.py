"""Answers of a run to texts that the caller brings."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kerasllm.errors import UserError
from kerasllm.runs.trained_run import answer_texts, load_run


def predict(
    run_dir: Path | str, texts: Iterable[str], overrides: Sequence[str] = (), data_dir: Path | str | None = None
) -> list[dict[str, Any]]:
    """Answer texts with the trained model of a run.

    Args:
        run_dir: the run directory.
        texts: raw texts, as a person writes them, or files of pictures; for a task with several inputs
            all of them, with TAB between them.
        overrides: `section.key=value`, such as `generation.beam_size=1`.
        data_dir: where the published weights lie that the run builds on, if it does.

    Returns:
        One `{"source": text, "text": answer, "score": ...}` per text, in their order: the outputs of the task, of which
        the first is the answer.

    Raises:
        UserError: the run cannot be loaded, a text has another number of parts than the task has inputs, or a file
            cannot be read.
    """
    run = load_run(run_dir, overrides, data_dir)
    texts, fields = list(texts), list(run.task.inputs.values())
    rows = [text.split("\t") if len(fields) > 1 else [text] for text in texts]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(fields):
            raise UserError(f"text {number}: has {len(row)} parts; give {', '.join(fields)} with TAB between them")
    inputs = [[run.task.read_input(part) for part in row] for row in rows]
    answers = answer_texts(run.task, list(zip(*inputs, strict=True)), "predict")
    return [{"source": text, **answer} for text, answer in zip(texts, answers, strict=True)]
