"""What a run writes down of its evaluations."""

import json
import math
from types import SimpleNamespace

import tensorflow as tf

from kerasllm.training.callbacks import Evaluation


def test_after_a_step_without_a_loss_the_line_is_still_json():
    """A step that was left out may be one that is evaluated after; JSON has no word for its loss."""
    lines = []
    evaluation = Evaluation(
        evaluate=lambda: ({"loss": 0.5}, []),
        plan=SimpleNamespace(evaluation_steps={3}),
        settings=SimpleNamespace(best_metric="loss", stop_after_evaluations_without_gain=None),
        record=lambda metrics: lines.append(json.dumps(metrics, allow_nan=False)),
        writer=tf.summary.create_noop_writer(),
        bar=SimpleNamespace(update=lambda **figures: None),
    )
    evaluation.on_step(3, {"loss": math.nan})
    assert lines == ['{"step": 3, "train_loss": null, "validation": {"loss": 0.5}}']
