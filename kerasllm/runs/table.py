"""What is about to be trained, as a table for the person who waits for it."""

from __future__ import annotations

from kerasllm.cluster import is_alone
from kerasllm.data.store import Examples, Prepared
from kerasllm.runs.training_run import Run
from kerasllm.terminal import show_table


def show_run(run: Run, prepared: Prepared, step: int) -> None:
    """What is about to be trained, as a table."""
    examples = prepared.examples("train")
    batches = run.stream.batches(0)
    lengths = examples.lengths
    positions = sum(len(rows) * lengths[rows].max(axis=0).sum() for rows in batches)
    tokens = sum(lengths[rows].sum() for rows in batches)
    trained, parameters = run.trainer.parameter_counts
    rows = [
        ("recipe", run.recipe.name),
        ("parameters", f"{trained:,} trained of {parameters:,} ({trained / parameters:.2%})"),
        ("vocabulary", f"{prepared.vocabulary_size:,}" if prepared.vocabulary_size else "none"),
        ("examples", describe_examples(examples, run.stream.num_too_long)),
        ("batches per epoch", f"{len(batches):,}, {1 - tokens / positions:.1%} of their positions padding"),
        ("steps", f"{run.plan.total_steps:,}" + (f", going on after {step:,}" if step else "")),
        ("replicas", f"{run.strategy.num_replicas_in_sync}" + ("" if is_alone(run.strategy) else " on all workers")),
    ]
    show_table(f"train: {run.directory.path}", ("", ""), rows)
    if run.recipe.ticks:
        show_table("timeline", ("after step", "change", "trained parameters"), run.timeline.rows())


def describe_examples(examples: Examples, num_too_long: int) -> str:
    """How many there are, and what became of those that are too long."""
    if examples.num_cut is not None:
        return f"{len(examples):,}, {examples.num_cut:,} of them too long and cut"
    return f"{len(examples):,}, {num_too_long:,} of them too long and left out"
