"""How good a model is on a split: the same measure while it trains and afterwards."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from kerasllm.data.batching import BatchStream
from kerasllm.data.store import Examples
from kerasllm.trained_run import answer_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_EXPONENT = 709.0
"""Of a number that a float can hold."""


def png_of(figure: Figure) -> bytes:
    """A picture as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, bbox_inches="tight")
    return content.getvalue()


class LossSum:
    """The loss over a whole split, summed over its tokens, without label smoothing.

    Args:
        task: whose `forward` and `loss` it is.
        model: the model; its weights of the moment count.
        stream: of the split, on one replica.
    """

    def __init__(self, task: Any, model: Any, stream: BatchStream):
        import tensorflow as tf

        from kerasllm.training.objectives import Supervised

        objective = Supervised(task)

        def sums(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            losses, weights = objective(model, batch, training=False)  # [B, T], [B, T]
            return tf.reduce_sum(losses * weights), tf.reduce_sum(weights)

        signature = {name: tf.TensorSpec([None, None], dtype) for name, dtype in stream.feature_types.items()}
        self.stream, self._sums = stream, tf.function(sums, input_signature=[signature], autograph=False)

    def __call__(self) -> tuple[float, float]:
        """The sum in nats, and the number of tokens."""
        loss, tokens = 0.0, 0.0
        for rows in self.stream.batches(epoch=0):
            for batch in self.stream.parts(rows):
                batch_loss, batch_tokens = self._sums(batch)
                loss, tokens = loss + float(batch_loss), tokens + float(batch_tokens)
        return loss, tokens


class Evaluator:
    """Answers a split and measures; can be called again after the weights have changed.

    After a call `answers` are those of each record, as `task.metrics` and `task.pictures` take them, and `references`
    what they are measured against.

    Args:
        task: with its model built.
        examples: the split.
        stream: of the same examples, on one replica.
    """

    def __init__(self, task: Any, model: Any, examples: Examples, stream: BatchStream):
        self.task, self.loss_sum = task, LossSum(task, model, stream)
        self.fields = list(task.inputs.values())
        self.columns = [list(examples.texts[field]) for field in self.fields]
        self.references = list(examples.texts[task.reference])
        self.answers: list[dict[str, Any]] = []

    def __call__(self, description: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measures with the weights of this moment.

        Args:
            description: what the progress bar says.

        Returns:
            The metrics of the task with `loss` (nats per position) and, for text, `perplexity`; and for each record,
            in the order of the split, its inputs, `reference`, `prediction`, and the further outputs of the answer but
            for those that are the same in each.
        """
        answers = self.answers = answer_texts(self.task, self.columns, description)
        rows = []
        for answer, reference, *inputs in zip(answers, self.references, *self.columns, strict=True):
            (_, prediction), *others = answer.items()
            others = [(name, value) for name, value in others if name not in self.task.unvaried_outputs]
            row = dict(zip(self.fields, inputs, strict=True))
            rows.append({**row, "reference": reference, "prediction": prediction, **dict(others)})
        loss, tokens = self.loss_sum()
        metrics = self.task.metrics(answers, self.references)
        loss /= tokens
        if "perplexity" in self.task.metric_names:  # a run that diverges goes on
            metrics["perplexity"] = math.exp(loss) if loss < MAX_EXPONENT else math.inf
        return {**metrics, "loss": loss, "tokens": int(tokens)}, rows
