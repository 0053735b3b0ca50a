"""How good a model is on a split: the same measure while it trains and afterwards."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerasllm.data.batching import BatchStream
from kerasllm.data.store import Examples
from kerasllm.runs.trained_run import answer_texts

if TYPE_CHECKING:
    import tensorflow as tf
    from matplotlib.figure import Figure

MAX_EXPONENT = 709.0
"""Of a number that a float can hold."""


def png_of(figure: Figure) -> bytes:
    """A picture as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, bbox_inches="tight")
    return content.getvalue()


class LossSum:
    """The loss over a whole split, summed over its tokens or what else is counted, without label smoothing.

    Args:
        task: whose `forward` and `loss` it is.
        model: the model; its weights of the moment count.
        stream: of the split, on one replica.
        sums: of the task, if it has figures of its own that are summed in the same pass.

    Attributes:
        others: these figures, after a call.
    """

    def __init__(
        self,
        task: Any,
        model: Any,
        stream: BatchStream,
        sums: Callable[[Any, dict[str, tf.Tensor]], dict[str, tf.Tensor]] = lambda logits, batch: {},
    ):
        import tensorflow as tf

        def sums_of(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
            logits = task.forward(model, batch, training=False)
            losses, weights = task.loss(logits, batch, 0.0)  # [B, T], [B, T]
            return tf.reduce_sum(losses * weights), tf.reduce_sum(weights), sums(logits, batch)

        signature = {name: tf.TensorSpec([None, None], dtype) for name, dtype in stream.feature_types.items()}
        self.stream, self._sums = stream, tf.function(sums_of, input_signature=[signature], autograph=False)
        self.others: dict[str, float] = {}

    def __call__(self) -> tuple[float, float]:
        """The sum in nats, and the weight that it has."""
        loss, weight, others = 0.0, 0.0, Counter()
        for rows in self.stream.batches(epoch=0):
            for batch in self.stream.parts(rows):
                batch_loss, batch_weight, figures = self._sums(batch)
                loss, weight = loss + float(batch_loss), weight + float(batch_weight)
                others.update({name: float(value) for name, value in figures.items()})
        self.others = dict(others)
        return loss, weight


class Evaluator:
    """Answers a split and measures; can be called again after the weights have changed.

    After a call `answers` are those of each of the task's `questions`, as `task.metrics` and `task.pictures` take them,
    and `references` what they are measured against.

    Args:
        task: with its model built.
        examples: the split.
        stream: of the same examples, on one replica.
    """

    def __init__(self, task: Any, model: Any, examples: Examples, stream: BatchStream):
        stream.corruption = task.corruption()
        self.task, self.loss_sum = task, LossSum(task, model, stream, task.sums)
        self.asked = task.asked_in_evaluation()
        self.fields = list(self.asked.inputs.values())
        self.columns, self.references = self.asked.questions(examples.texts)
        self.shown = self.asked.shown_questions(examples.texts)
        self.answers: list[dict[str, Any]] = []

    def __call__(self, description: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measures with the weights of this moment.

        Args:
            description: what the progress bar says.

        Returns:
            The metrics of the task with `loss` (nats per position) and, for text, `perplexity`; and for each question,
            in the order of the split, its inputs, `reference` if there is one, `prediction`, and the further outputs of
            the answer but for those that are the same in each.
        """
        answers = self.answers = answer_texts(self.asked, self.columns, description)
        rows = []
        references = [{"reference": text} for text in self.references] or [{}] * len(answers)
        for answer, reference, *inputs in zip(answers, references, *self.shown, strict=True):
            (_, prediction), *others = answer.items()
            others = [(name, value) for name, value in others if name not in self.task.unvaried_outputs]
            row = dict(zip(self.fields, inputs, strict=True))
            rows.append({**row, **reference, "prediction": prediction, **dict(others)})
        loss, weight = self.loss_sum()
        metrics = {**self.task.metrics(answers, self.references), **self.task.metrics_of_sums(self.loss_sum.others)}
        loss /= weight
        if "perplexity" in self.task.metric_names and "perplexity" not in metrics:  # a run that diverges goes on
            metrics["perplexity"] = math.exp(loss) if loss < MAX_EXPONENT else math.inf
        return {**metrics, "loss": loss, self.task.counted: int(weight)}, rows
