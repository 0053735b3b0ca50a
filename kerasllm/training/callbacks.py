"""What happens around the steps of a run: showing, logging, evaluating, saving, stopping. All count optimizer steps."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary

from kerasllm.terminal import ProgressLine, say
from kerasllm.training.checkpoints import Checkpoints, read_variables
from kerasllm.training.input_wait import InputWait
from kerasllm.training.settings import LOWER_IS_BETTER, StepPlan, TrainingSettings


class StepCallback(keras.callbacks.Callback):
    """Calls `on_step(step, logs)` after each optimizer step, with steps counted from the start of the run."""

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        logs = {} if logs is None else logs
        if "step" not in logs:  # reading it costs more than all else that happens here: the first does it for all
            logs["step"] = int(self.model.optimizer.iterations.numpy())
        self.on_step(logs["step"], logs)

    def on_step(self, step: int, logs: dict[str, float]) -> None:
        """Overridden by each callback."""
        raise NotImplementedError


class Speed:
    """What is counted, per second of the steps alone: what evaluations and saves take is left out.

    Attributes:
        seconds: of the last step.
    """

    def __init__(self, decay: float = 0.98):
        self.decay, self.value, self.seconds, self._began = decay, 0.0, 0.0, 0.0

    def begin(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def end(self, count: float) -> float:
        """A step of so many tokens or records has ended; returns the running mean of them per second."""
        self.seconds = time.perf_counter() - self._began
        now = count / max(self.seconds, 1e-9)
        self.value = now if not self.value else self.decay * self.value + (1 - self.decay) * now
        return self.value


class StepLog(StepCallback):
    """Shows each step on the progress bar, and writes it to TensorBoard.

    Args:
        bar: of all steps of the run.
        writer: TensorBoard's.
        counted: what the weights of the loss count, such as `tokens`.
        more_figures: gives, after a step, what the task adds to the figures of every step.
    """

    def __init__(
        self,
        bar: ProgressLine,
        writer: tf.summary.SummaryWriter,
        counted: str,
        more_figures: Callable[[], dict[str, float]] = dict,
    ):
        super().__init__()
        self.bar, self.writer, self.more_figures = bar, writer, more_figures
        self.speed_name = f"{counted}_per_second"
        self.speed, self.input_wait = Speed(), InputWait()

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.speed.begin()

    def on_step(self, step: int, logs: dict[str, float]) -> None:
        speed = self.speed.end(logs["weight"])
        input_wait_share = self.input_wait.add(self.model.input_wait_seconds, self.speed.seconds)
        self.bar.advance()
        self.bar.update(**{"loss": f"{logs['loss']:.3f}", self.speed_name: f"{speed:,.0f}"})
        names = ("loss", "learning_rate", "gradient_norm", "padding_share", "loss_scale")
        figures = {name: logs[name] for name in names if name in logs}
        figures |= {self.speed_name: speed, "input_wait_share": input_wait_share}
        figures |= self.more_figures()
        values = [Summary.Value(tag=f"train/{name}", simple_value=value) for name, value in figures.items()]
        with self.writer.as_default(step):  # at once: an operation for each of them costs a short step some percent
            tf.summary.experimental.write_raw_pb(Summary(value=values).SerializeToString())


class Evaluation(StepCallback):
    """Evaluates at the steps of the plan, keeps count of the gain, and stops when there has been none for long.

    Args:
        evaluate: makes the metrics of the validation split, and a few sample lines of text.
        plan: names the steps.
        settings: `best_metric` and `stop_after_evaluations_without_gain`.
        record: adds a line to `metrics.jsonl`.
        writer: TensorBoard's.
        bar: shows the metric.
    """

    def __init__(
        self,
        evaluate: Callable[[], tuple[dict[str, Any], list[str]]],
        plan: StepPlan,
        settings: TrainingSettings,
        record: Callable[[dict[str, Any]], None],
        writer: tf.summary.SummaryWriter,
        bar: ProgressLine,
    ):
        super().__init__()
        self.evaluate, self.plan, self.settings = evaluate, plan, settings
        self.record, self.writer, self.bar = record, writer, bar
        self.score: float | None = None
        self.metrics: dict[str, Any] | None = None
        self.state = {"best_score": None, "without_gain": 0}

    def on_step(self, step: int, logs: dict[str, float]) -> None:
        self.score = self.metrics = None
        if step not in self.plan.evaluation_steps:
            return
        self.metrics, samples = self.evaluate()
        self.score = score_of(self.metrics, self.settings.best_metric)
        gained = self.state["best_score"] is None or self.score > self.state["best_score"]
        self.state = {
            "best_score": self.score if gained else self.state["best_score"],
            "without_gain": 0 if gained else self.state["without_gain"] + 1,
        }
        self._report(step, logs, self.metrics, samples, gained)
        if self.has_stalled:
            say(f"step {step:,}: no better {self.settings.best_metric} for long; stopping early")
            self.model.stop_training = True

    @property
    def has_stalled(self) -> bool:
        """Whether there has been no gain for as many evaluations as the recipe allows."""
        patience = self.settings.stop_after_evaluations_without_gain
        return patience is not None and self.state["without_gain"] >= patience

    def _report(self, step: int, logs, metrics: dict[str, Any], samples: list[str], gained: bool) -> None:
        numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        best = self.settings.best_metric
        self.bar.update(**{best: f"{numbers[best]:.4g}"})
        shown = "  ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}" for name, value in numbers.items()
        )
        say(f"step {step:,}: train loss {logs['loss']:.3f}  validation: {shown}{'  (best)' if gained else ''}")
        train_loss = logs["loss"] if math.isfinite(logs["loss"]) else None  # JSON knows no other numbers
        self.record({"step": step, "train_loss": train_loss, "validation": metrics})
        with self.writer.as_default(step):
            for name, value in numbers.items():
                tf.summary.scalar(f"validation/{name}", value)
            tf.summary.text("validation/samples", "\n\n".join(samples))


def score_of(metrics: dict[str, Any], best_metric: str) -> float:
    """The value of a metric as a score, higher being better; one that is not a number is the worst."""
    value = metrics[best_metric]
    score = -value if best_metric in LOWER_IS_BETTER else value
    return score if math.isfinite(score) else -math.inf


class Saving(StepCallback):
    """Saves at each interval and evaluation, and at the end of the run however it ends.

    A first Ctrl-C or SIGTERM lets the step end, saves, and stops; a second Ctrl-C is obeyed at once. Of several workers
    each tells the others with its next step, so that all stop after the same one.

    Args:
        checkpoints: where to; None on a worker that saves nothing.
        evaluation: whose state and scores are saved; comes before this callback.
        progress: gives what else goes on from here.
        writer: TensorBoard's; what it has is on the disk before a checkpoint is, so that no step is missing later.
        every_steps: optimizer steps.
        seconds_before: that the run was trained in earlier sessions.
        is_alone: whether no other worker has to be told of a signal.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        evaluation: Evaluation,
        progress: Callable[[], dict[str, Any]],
        writer: tf.summary.SummaryWriter,
        every_steps: int,
        seconds_before: float,
        is_alone: bool = True,
    ):
        super().__init__()
        self.checkpoints, self.evaluation, self.progress = checkpoints, evaluation, progress
        self.writer, self.every_steps, self.is_alone = writer, every_steps, is_alone
        self.seconds_before, self._started = seconds_before, time.monotonic()
        self.interrupted_by: str | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def was_interrupted(self) -> bool:
        """Whether a signal ended the training; one to a single worker that came too late to tell the others did not."""
        return self.interrupted_by is not None and (self.is_alone or self.model.stop_training)

    @property
    def seconds(self) -> float:
        """That the run has been trained, evaluations included, in all its sessions."""
        return self.seconds_before + time.monotonic() - self._started

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        self.interrupted_by = signal.Signals(number).name
        signal.signal(number, self._handlers[number])
        say("stopping after this step; once more to stop at once")

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self.interrupted_by and not self.is_alone:
            self.model.request_stop()

    def on_step(self, step: int, logs: dict[str, float]) -> None:
        if logs["stop_requests"]:
            self.interrupted_by = self.interrupted_by or "another worker"
        if logs["stop_requests"] or (self.interrupted_by and self.is_alone):
            self.model.stop_training = True
        if self.model.stop_training or step % self.every_steps == 0 or self.evaluation.score is not None:
            self.save(step)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Gives signals back to whom they were taken from; to be called too where an error has ended `fit`."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def save(self, step: int) -> None:
        """Writes the checkpoint of this step, with the score if it was evaluated."""
        if self.checkpoints is None:
            return
        self.writer.flush()
        with self.model.answering_weights() as weights:
            answering = read_variables(weights)
        progress = {
            "score": self.evaluation.score,
            "validation": self.evaluation.metrics,
            "evaluation": self.evaluation.state,
            "seconds": self.seconds,
        }
        state = read_variables(self.model.state_variables)
        self.checkpoints.save(step, answering, state, {**progress, **self.progress()})
