"""Answers of a run to texts that the caller brings."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kerasllm.trained_run import answer_texts, load_run


def predict(run_dir: Path | str, texts: Iterable[str], overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Answer texts with the trained model of a run.

    Args:
        run_dir: the run directory.
        texts: raw texts, as a person writes them.
        overrides: `section.key=value`, such as `generation.beam_size=1`.

    Returns:
        One `{"source": text, "text": answer, "score": ...}` per text, in their order.

    Raises:
        UserError: the run cannot be loaded.
    """
    run = load_run(run_dir, overrides)
    texts = list(texts)
    answers = answer_texts(run.task, texts, "predict")
    return [{"source": text, **answer} for text, answer in zip(texts, answers, strict=True)]
