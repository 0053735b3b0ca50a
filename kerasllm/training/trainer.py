"""The training step: one optimizer step is exactly the step of the whole global batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import keras
import tensorflow as tf

from kerasllm.training.adversarial import Objective
from kerasllm.training.normalization_gates import Gate
from kerasllm.training.optimizers import add_penalty_gradients
from kerasllm.training.step_guard import StepGuard
from kerasllm.training.variable_paths import frozen_weights

DRAWS_PER_STEP = 1024  # of one layer; one that draws more often begins to repeat what it will draw in the next step


class Trainer(keras.Model):
    r"""Trains a model by `fit`, on any number of replicas, as if there were one.

    Keras averages over each replica first, so a batch whose padding lies unevenly gives another gradient, and it clips
    before the replicas are summed. Here, with the loss $\ell_i$ and weight $w_i$ of each position:

    1. each replica adds up the gradients of $\sum_i w_i \ell_i$ of its micro-batches, one after the other;
    2. the gradients and the weights $W = \sum_i w_i$ are summed over the replicas, and the one divided by the other;
    3. that is the gradient of the mean over the whole global batch: it is clipped, then applied.

    With a guard, a step that it does not let count changes nothing but the optimizer's `iterations` and what the guard
    itself keeps: weights, the optimizer's slots and the average have the same bits as before.

    Args:
        model: the Keras model to train, already built.
        objective: `objective(model, batch, training) -> (losses [B, T], weights [B, T])`, not yet reduced.
        clip_norm: greatest norm of the whole gradient, or None.
        l1, l2: penalties of `add_penalty_gradients`, which are not in the loss that is shown.
        average_decay: function of the step, int64 scalar, that gives the decay of the moving average of the weights
            $\bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta$ ([Polyak and Juditsky, 1992](
            https://doi.org/10.1137/0330046)); None keeps no average.
        gates: of the model; each is set after a step to its value for the next one, and is not averaged.
        guard: decides which steps count, and scales the loss for float16; the optimizer is then one of
            `build_optimizer`. Without it all steps count.
        helpers: variables of the objective that are trained with the model and are no part of it.
        lookahead_every: steps after which the weights become the average, and go on from there
            ([Zhang et al., 2019](https://arxiv.org/abs/1907.08610)); None leaves them. Needs `average_decay`.

    What is frozen when the trainer is made stays so: it is neither averaged nor watched by a step.

    Attributes:
        input_wait_seconds: that the last step of `fit` waited for its batch.
        left_out: weights that are found elsewhere and never change, so that no checkpoint needs them.
    """

    def __init__(
        self,
        model: keras.Model,
        objective: Objective,
        clip_norm: float | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
        average_decay: Callable[[tf.Tensor], tf.Tensor] | None = None,
        gates: Sequence[Gate] = (),
        guard: StepGuard | None = None,
        helpers: Sequence[keras.Variable] = (),
        lookahead_every: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.model = model
        self.objective = objective
        self.clip_norm, self.l1, self.l2 = clip_norm, l1, l2
        self.average_decay, self.lookahead_every = average_decay, lookahead_every
        self.gates, self.guard, self.helpers = gates, guard, list(helpers)
        self.input_wait_seconds = 0.0
        self.left_out: tuple[keras.Variable, ...] = ()
        self.frozen = {id(weight) for weight in frozen_weights(model)}
        self.averages = [_copy_of(weight) for weight in self.averaged_weights]
        weights = {id(weight) for weight in model.weights}
        self.stop_requests = tf.Variable(0.0, trainable=False, name="stop_requests")
        self.generator_states = [variable for variable in model.variables if id(variable) not in weights]
        self.built = True

    @property
    def averaged_weights(self) -> list[keras.Variable]:
        """The weights of the model that a moving average is kept of, in the order of the averages."""
        fixed = {*self.frozen, *(id(gate.variable) for gate in self.gates)}
        return [weight for weight in self.model.weights if self.average_decay and id(weight) not in fixed]

    @property
    def parameter_counts(self) -> tuple[int, int]:
        """How many numbers of the model are trained in some phase, and how many could be."""
        weights = [weight for weight in self.model.weights if weight.value.trainable]
        trained = sum(math.prod(weight.shape) for weight in weights if id(weight) not in self.frozen)
        return trained, sum(math.prod(weight.shape) for weight in weights)

    @property
    def stored_megabytes(self) -> float:
        """The size of the weights that a checkpoint holds for answers, in millions of bytes."""
        return sum(math.prod(w.shape) * w.value.dtype.size for w in self.stored_weights) / 1e6

    @property
    def stored_weights(self) -> list[keras.Variable]:
        """The weights of the model that a checkpoint holds."""
        left_out = {id(weight) for weight in self.left_out}
        return [weight for weight in self.model.weights if id(weight) not in left_out]

    @property
    def state_variables(self) -> list[keras.Variable]:
        """What a run needs besides `answering_weights` to go on: the optimizer, what the guard keeps, the helpers and,
        where an average of the weights answers, the weights themselves."""
        kept = [*(self.guard.variables if self.guard else []), *self.helpers]
        return [*self.optimizer.variables, *kept, *(self.stored_weights if self.averages else [])]

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """What the next step changes: the weights of the model that are not frozen, and the helpers."""
        return [*self.model.trainable_variables, *self.helpers]

    @contextmanager
    def answering_weights(self) -> Iterator[list[keras.Variable]]:
        """The weights that are stored; inside the block the model's hold the moving average, where one is kept."""
        trained = [weight.numpy() for weight in self.averaged_weights]
        _assign_all(self.averaged_weights, self.averages)
        try:
            yield self.stored_weights
        finally:
            _assign_all(self.averaged_weights, trained)

    def start_averages(self) -> None:
        """Sets the average to the weights of this moment."""
        _assign_all(self.averages, self.averaged_weights)

    def call(self, inputs, training: bool = False):
        """The model itself."""
        return self.model(inputs, training=training)

    def request_stop(self) -> None:
        """Lets the figures of the next step say, on every worker, that one of them is to stop."""
        self.stop_requests.assign(1.0)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        """Everything is built when the trainer is made; Keras would draw a batch to build it again."""

    def make_train_function(self, force: bool = False) -> None:
        """Makes the function that `fit` calls for each step; it also measures how long the step waits for its batch.

        Keras's own averages the figures over replicas, which fails where these are on several machines (keras #20585);
        here every replica has those of the global batch already.
        """
        if self.train_function is not None and not force:
            return
        strategy, step = self.distribute_strategy, None

        def step_of(batches):
            figures = strategy.run(self.train_step, args=(batches,))
            return {name: strategy.experimental_local_results(each)[0] for name, each in figures.items()}

        def train_function(iterator):
            nonlocal step
            began = time.perf_counter()
            batches = iterator.get_next()  # outside of the graph, where no clock may be read in deterministic runs
            self.input_wait_seconds = time.perf_counter() - began
            if step is None:  # traced once, for batches of every size
                step = tf.function(step_of, input_signature=[iterator.element_spec], autograph=False)
            return step(batches)

        self.train_function = train_function

    def train_step(self, batches: Sequence[dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        """One optimizer step, in replica context.

        Args:
            batches: this replica's part of the global batch, as micro-batches.

        Returns:
            Figures of the global batch: `loss` (mean over its weights), `weight` (their sum),
            `padding_share` (of its positions), `gradient_norm` (before clipping), `learning_rate`, `stop_requests` (of
            all replicas, see `request_stop`), and those of the guard.
        """
        variables = self.trained_variables
        learning_rate = tf.cast(self.optimizer.learning_rate, tf.float32)
        untrained = [weight for weight in self.model.non_trainable_weights if id(weight) not in self.frozen]
        untrained = untrained if self.guard else []
        before = [tf.convert_to_tensor(weight.value) for weight in untrained]
        (loss, weight, positions, stop_requests), gradients = self.gradient_of(batches)
        norm = tf.linalg.global_norm(gradients)
        applies, guarded = self.guard.judge(loss / weight, norm) if self.guard else (None, {})
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        self._apply(gradients, variables, applies)
        if applies is not None:
            put_back_unless(applies, untrained, before)
        for gate in self.gates:
            gate.set(self.optimizer.iterations.value)
        return {
            "loss": loss / weight,
            "weight": weight,
            "padding_share": 1.0 - weight / positions,
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "stop_requests": stop_requests,
            **guarded,
        }

    def gradient_of(self, batches: Sequence[dict[str, tf.Tensor]]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The gradient of the whole global batch, in replica context; nothing is applied.

        Args:
            batches: as in `train_step`.

        Returns:
            Sums over the global batch: of weighted losses, of weights, of positions, and of requests to stop; and for
            each trainable variable the gradient of the mean loss and the penalties, not clipped.
        """
        replica = tf.distribute.get_replica_context()
        variables = self.trained_variables
        self._seed_step()
        scale = self.guard.loss_scale.scale.value if self.guard and self.guard.loss_scale else None
        totals, gradients = self._sum_of_micro_batches(batches, variables, scale)
        totals = tf.concat([totals, [self.stop_requests]], axis=0)
        loss, weight, positions, stop_requests = tf.unstack(sum_over_replicas(replica, totals))
        weight = tf.maximum(weight, 1e-9)
        divisor = weight if scale is None else weight * scale
        gradients = [gradient / divisor for gradient in sum_over_replicas(replica, gradients)]
        return [loss, weight, positions, stop_requests], add_penalty_gradients(gradients, variables, self.l1, self.l2)

    def _apply(self, gradients: list[tf.Tensor], variables: list[keras.Variable], applies: tf.Tensor | None) -> None:
        """One step of the optimizer and of the average, if it applies; always where `applies` is None."""
        # The optimizer sums over replicas again what is already the sum on each of them.
        count = tf.distribute.get_replica_context().num_replicas_in_sync
        gradients = gradients if count == 1 else [gradient / count for gradient in gradients]
        if applies is None:
            self.optimizer.apply(gradients, variables)
        else:
            self.optimizer.apply_if(applies, gradients, variables)
        if self.average_decay is not None:
            self._average(tf.constant(True) if applies is None else applies)

    def _average(self, applies: tf.Tensor) -> None:
        """Moves the average towards the weights, if the step applies, and at times the weights to the average."""
        step = self.optimizer.iterations.value
        decay = self.average_decay(step)
        for average, variable in zip(self.averages, self.averaged_weights, strict=True):
            after = variable + decay * (average - variable)
            average.assign(tf.where(applies, after, average.value))
            if self.lookahead_every is not None:
                returns = tf.logical_and(applies, tf.equal(step % self.lookahead_every, 0))
                # Of this replica's copy, as `after` is the same on all of them.
                after = tf.where(returns, after, variable.value)
                tf.raw_ops.AssignVariableOp(resource=variable.value.handle, value=after)

    def _seed_step(self) -> None:
        """Sets each random generator of the model, such as that of a dropout layer, to its state of this step.

        What is drawn in a step then follows from the layer's seed, the step, the replica and how often the layer was
        called in the step; a run that goes on needs no state of it.
        """
        step = self.optimizer.iterations.value
        for state in self.generator_states:
            state.assign(tf.stack([state.value[0], tf.cast(step * DRAWS_PER_STEP, state.dtype)]))

    def _sum_of_micro_batches(self, batches, variables, scale) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """[weighted losses, weights, positions], and the gradient of the first, summed over this replica's batches.

        The gradient, and it alone, is that of `scale` times the losses.
        """
        totals, gradients, values = tf.zeros([3]), [], [variable.value for variable in variables]
        for batch in batches:
            # Each begins when the one before is done, so that only one is in memory.
            with tf.control_dependencies(gradients), tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)  # and nothing that is frozen
                losses, weights = self.objective(self.model, batch, training=True)
                weights = tf.cast(weights, tf.float32)
                loss = tf.reduce_sum(tf.cast(losses, tf.float32) * weights)
                scaled = loss if scale is None else loss * scale
            found = tape.gradient(scaled, values)
            for index, helper in enumerate(self.helpers, start=len(variables) - len(self.helpers)):
                if found[index] is None:  # another phase of the training needs it
                    found[index] = tf.zeros_like(helper.value)
            # An embedding's gradient is a list of rows; two of them may be the same row, which a norm would not see.
            found = [tf.convert_to_tensor(gradient) for gradient in found]
            gradients = [a + b for a, b in zip(gradients, found, strict=True)] if gradients else found
            totals += tf.stack([loss, tf.reduce_sum(weights), tf.cast(tf.size(weights), weights.dtype)])
        return totals, gradients


def _copy_of(weight: keras.Variable) -> keras.Variable:
    """A variable of the same value; as all replicas change it alike, the value of the first is taken."""
    return keras.Variable(
        weight.numpy(), trainable=False, name=f"average_{weight.name}", aggregation="only_first_replica"
    )


def _assign_all(variables: Sequence[keras.Variable], values: Sequence) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def put_back_unless(applies: tf.Tensor, variables: Sequence[keras.Variable], values: Sequence[tf.Tensor]) -> None:
    """Gives variables their values back where `applies` is false, in replica context.

    What they lose is what the forward pass wrote to them, such as the running statistics of a normalization.
    """

    def put_back(variable: tf.Variable, value: tf.Tensor, applies: tf.Tensor) -> None:
        def assign() -> tf.Tensor:
            variable.assign(value)
            return tf.constant(False)

        tf.cond(applies, lambda: tf.constant(True), assign)

    # Each replica's copy by itself: an assignment in replica context may take the mean of them, which rounds.
    def on_all_replicas(strategy: tf.distribute.Strategy, applies: tf.Tensor, values: list[tf.Tensor]) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable.value, put_back, args=(value, applies), group=False)

    if variables:
        tf.distribute.get_replica_context().merge_call(on_all_replicas, args=(applies, list(values)))


def sum_over_replicas(replica: tf.distribute.ReplicaContext, values):
    """The sum of each tensor over all replicas; with one replica the tensors themselves."""
    if replica.num_replicas_in_sync == 1:
        return values
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)
