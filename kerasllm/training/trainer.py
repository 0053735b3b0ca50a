"""The training step: one optimizer step is exactly the step of the whole global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

from kerasllm.training.adversarial import Objective
from kerasllm.training.optimizers import add_penalty_gradients

DRAWS_PER_STEP = 1024  # of one layer; one that draws more often begins to repeat what it will draw in the next step


class Trainer(keras.Model):
    r"""Trains a model by `fit`, on any number of replicas, as if there were one.

    Keras averages over each replica first, so a batch whose padding lies unevenly gives another gradient, and it clips
    before the replicas are summed. Here, with the loss $\ell_i$ and weight $w_i$ of each position:

    1. each replica adds up the gradients of $\sum_i w_i \ell_i$ of its micro-batches, one after the other;
    2. the gradients and the weights $W = \sum_i w_i$ are summed over the replicas, and the one divided by the other;
    3. that is the gradient of the mean over the whole global batch: it is clipped, then applied.

    Args:
        model: the Keras model to train, already built.
        objective: `objective(model, batch, training) -> (losses [B, T], weights [B, T])`, not yet reduced.
        clip_norm: greatest norm of the whole gradient, or None.
        l1, l2: penalties of `add_penalty_gradients`, which are not in the loss that is shown.
        average_decay: function of the step, int64 scalar, that gives the decay of the moving average of the weights
            $\bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta$ ([Polyak and Juditsky, 1992](
            https://doi.org/10.1137/0330046)); None keeps no average.
    """

    def __init__(
        self,
        model: keras.Model,
        objective: Objective,
        clip_norm: float | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
        average_decay: Callable[[tf.Tensor], tf.Tensor] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.model = model
        self.objective = objective
        self.clip_norm, self.l1, self.l2 = clip_norm, l1, l2
        self.average_decay = average_decay
        self.averages = [_copy_of(weight) for weight in model.weights] if average_decay else []
        weights = {id(weight) for weight in model.weights}
        self.stop_requests = tf.Variable(0.0, trainable=False, name="stop_requests")
        self.generator_states = [variable for variable in model.variables if id(variable) not in weights]
        self.built = True

    @property
    def state_variables(self) -> list[keras.Variable]:
        """What a run needs besides `answering_weights` to go on: the optimizer and, where an average of the weights
        answers, the weights themselves."""
        return [*self.optimizer.variables, *(self.model.weights if self.averages else [])]

    @contextmanager
    def answering_weights(self) -> Iterator[list[keras.Variable]]:
        """The model's weights; inside the block they hold the moving average, where one is kept."""
        weights = self.model.weights
        trained = [np.array(weight.value) for weight in weights] if self.averages else []
        _assign_all(weights if self.averages else [], self.averages)
        try:
            yield weights
        finally:
            _assign_all(weights if self.averages else [], trained)

    def start_averages(self) -> None:
        """Sets the average to the weights of this moment."""
        _assign_all(self.averages, self.model.weights if self.averages else [])

    def call(self, inputs, training: bool = False):
        """The model itself."""
        return self.model(inputs, training=training)

    def request_stop(self) -> None:
        """Lets the figures of the next step say, on every worker, that one of them is to stop."""
        self.stop_requests.assign(1.0)

    def make_train_function(self, force: bool = False):
        """The function that `fit` calls for each step.

        Keras's own averages the figures over replicas, which fails where these are on several machines (keras #20585);
        here every replica has those of the global batch already.
        """
        if self.train_function and not force:
            return self.train_function
        strategy = self.distribute_strategy

        @tf.function(reduce_retracing=True)
        def one_step(iterator):
            figures = strategy.run(self.train_step, args=(next(iterator),))
            return {name: strategy.experimental_local_results(figure)[0] for name, figure in figures.items()}

        self.train_function = one_step
        return one_step

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        """Everything is built when the trainer is made; Keras would draw a batch to build it again."""

    def train_step(self, batches: Sequence[dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        """One optimizer step, in replica context.

        Args:
            batches: this replica's part of the global batch, as micro-batches.

        Returns:
            Figures of the global batch: `loss` (mean over its weights), `tokens` (sum of its weights),
            `padding_share` (of its positions), `gradient_norm` (before clipping), `learning_rate`, `stop_requests` (of
            all replicas, see `request_stop`).
        """
        replica = tf.distribute.get_replica_context()
        variables = self.model.trainable_variables
        self._seed_step()
        learning_rate = tf.cast(self.optimizer.learning_rate, tf.float32)
        totals, gradients = self._sum_of_micro_batches(batches, variables)
        totals = tf.concat([totals, [self.stop_requests]], axis=0)
        loss, weight, positions, stop_requests = tf.unstack(sum_over_replicas(replica, totals))
        weight = tf.maximum(weight, 1e-9)
        gradients = [gradient / weight for gradient in sum_over_replicas(replica, gradients)]
        gradients = add_penalty_gradients(gradients, variables, self.l1, self.l2)
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        # The optimizer sums over replicas again what is already the sum on each of them.
        count = replica.num_replicas_in_sync
        self.optimizer.apply(gradients if count == 1 else [g / count for g in gradients], variables)
        if self.average_decay is not None:
            decay = self.average_decay(self.optimizer.iterations.value)
            for average, variable in zip(self.averages, self.model.weights, strict=True):
                average.assign(variable + decay * (average - variable))
        return {
            "loss": loss / weight,
            "tokens": weight,
            "padding_share": 1.0 - weight / positions,
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "stop_requests": stop_requests,
        }

    def _seed_step(self) -> None:
        """Sets each random generator of the model, such as that of a dropout layer, to its state of this step.

        What is drawn in a step then follows from the layer's seed, the step, the replica and how often the layer was
        called in the step; a run that goes on needs no state of it.
        """
        step = self.optimizer.iterations.value
        for state in self.generator_states:
            state.assign(tf.stack([state.value[0], tf.cast(step * DRAWS_PER_STEP, state.dtype)]))

    def _sum_of_micro_batches(self, batches, variables) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """[weighted losses, weights, positions], and the gradient of the first, summed over this replica's batches."""
        totals, gradients = tf.zeros([3]), []
        for batch in batches:
            # Each begins when the one before is done, so that only one is in memory.
            with tf.control_dependencies(gradients), tf.GradientTape() as tape:
                losses, weights = self.objective(self.model, batch, training=True)
                loss = tf.reduce_sum(losses * weights)
            # An embedding's gradient is a list of rows; two of them may be the same row, which a norm would not see.
            found = [tf.convert_to_tensor(g) for g in tape.gradient(loss, [v.value for v in variables])]
            gradients = [a + b for a, b in zip(gradients, found, strict=True)] if gradients else found
            totals += tf.stack([loss, tf.reduce_sum(weights), tf.cast(tf.size(weights), weights.dtype)])
        return totals, gradients


def _copy_of(weight: keras.Variable) -> keras.Variable:
    """A variable of the same value; as all replicas change it alike, the value of the first is taken."""
    return keras.Variable(
        np.array(weight.value), trainable=False, name=f"average_{weight.name}", aggregation="only_first_replica"
    )


def _assign_all(variables: Sequence[keras.Variable], values: Sequence) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def sum_over_replicas(replica: tf.distribute.ReplicaContext, values):
    """The sum of each tensor over all replicas; with one replica the tensors themselves."""
    if replica.num_replicas_in_sync == 1:
        return values
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)
