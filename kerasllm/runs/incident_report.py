"""What is written down of a training step that went wrong."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kerasllm.cluster import is_alone, is_chief
from kerasllm.runs.training_run import Run
from kerasllm.training.incidents import inspect_step

MAX_INCIDENTS = 100
"""Steps of a run that are written down; where many are left out, later ones tell no more."""
NOT_INSPECTED = {"first_layer": None, "weights": [], "gradient_norms": {}}
"""What is known of a step that cannot be taken again: for want of memory, or because it takes several workers."""


def describe_step(run: Run, attempt: int, step: int, what: str, figures: dict[str, float]) -> str:
    """Writes down a step that went wrong and was not applied: its figures, its batch, and where it went wrong.

    Args:
        attempt: 1 more than the times that the run went back before it.
        what: went wrong.

    Returns:
        The file, and the first layer or weight that is not finite, in words.
    """
    epoch, step_in_epoch = run.plan.locate(step - 1)
    position = (epoch, step_in_epoch, run.plan.epoch_starts[epoch])
    if not is_chief(run.strategy):
        return "the chief has written down the batch"
    if len(list(run.directory.incidents_path.glob("step_*.json"))) >= MAX_INCIDENTS:
        return f"{run.directory.incidents_path} has {MAX_INCIDENTS} such batches, and this one is not written down"
    elements, rows = run.stream.elements_of_step(*position), run.stream.rows_of_step(*position)
    try:
        found = inspect_step(run.trainer, run.strategy, elements) if is_alone(run.strategy) else NOT_INSPECTED
    except tf.errors.ResourceExhaustedError:
        found = NOT_INSPECTED
    checkpoint = run.checkpoints.latest()
    content = {
        "step": step,
        "epoch": epoch,
        "what": what,
        "policy": run.recipe.training.on_failure.name,
        "last_checkpoint": checkpoint.path.name if checkpoint else None,
        "figures": {name: str(value) for name, value in figures.items()},
        **found,
        "gradient_norms": {path: str(norm) for path, norm in found["gradient_norms"].items()},
        "examples": with_decoded([run.stream.examples.record(row) for row in rows], run.task.tokenizer),
    }
    path = run.directory.write_incident(step, attempt, content)
    first = found["weights"][:1] or [found["first_layer"]["layer"] if found["first_layer"] else "no layer's output"]
    return f"{path} holds the batch; first not finite: {first[0]}"


def with_decoded(records: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Records with the text of each feature of token ids, in `decoded`; as they are without a tokenizer."""
    names = [name for name in records[0] if name.endswith("token_ids")] if tokenizer else []
    texts = [tokenizer.detokenize(tf.ragged.constant([r[name] for r in records], tf.int32)) for name in names]
    columns = [[text.decode("utf-8", "replace") for text in each.numpy()] for each in texts]
    decoded = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return [{**record, "decoded": each} for record, each in zip(records, decoded, strict=True)] if names else records
