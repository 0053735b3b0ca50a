"""The training step: one optimizer step is exactly the step of the whole global batch."""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasllm.training.adversarial import Objective
from kerasllm.training.settings import OptimizerSettings


class Trainer(keras.Model):
    r"""Trains a model by `fit`, on any number of replicas, as if there were one.

    Keras averages over each replica first, so a batch whose padding lies unevenly gives another gradient, and it clips
    before the replicas are summed. Here, with the loss $\ell_i$ and weight $w_i$ of each position:

    1. the weights are summed over all replicas, $W = \sum_i w_i$;
    2. each replica takes the gradient of its share of $\sum_i w_i \ell_i / W$;
    3. the gradients are summed over the replicas, then clipped, then applied.

    Args:
        model: the Keras model to train, already built.
        objective: `objective(model, batch, training) -> (losses [B, T], weights [B, T])`, not yet reduced.
        clip_norm: greatest norm of the whole gradient, or None.
    """

    def __init__(self, model: keras.Model, objective: Objective, clip_norm: float | None = None, **kwargs):
        super().__init__(**kwargs)
        self.model = model
        self.objective = objective
        self.clip_norm = clip_norm
        self.built = True

    @property
    def state_variables(self) -> list[keras.Variable]:
        """What a run needs besides the weights to go on: the optimizer, and the states of random generators."""
        weights = {id(variable) for variable in self.model.weights}
        return [*self.optimizer.variables, *(v for v in self.model.variables if id(v) not in weights)]

    def call(self, inputs, training: bool = False):
        """The model itself."""
        return self.model(inputs, training=training)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        """Everything is built when the trainer is made; Keras would draw a batch to build it again."""

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One optimizer step, in replica context.

        Args:
            batch: this replica's part of the global batch.

        Returns:
            Figures of the global batch: `loss` (mean over its weights), `tokens` (sum of its weights),
            `padding_share` (of its positions), `gradient_norm` (before clipping), `learning_rate`.
        """
        replica = tf.distribute.get_replica_context()
        variables = self.model.trainable_variables
        learning_rate = tf.cast(self.optimizer.learning_rate, tf.float32)
        with tf.GradientTape() as tape:
            losses, weights = self.objective(self.model, batch, training=True)
            total_weight = sum_over_replicas(replica, tf.reduce_sum(weights))
            positions = sum_over_replicas(replica, tf.cast(tf.size(weights), weights.dtype))
            loss = tf.reduce_sum(losses * weights) / tf.maximum(total_weight, 1e-9)
        # An embedding's gradient is a list of rows; two of them may be the same row, which a norm would not see.
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, [v.value for v in variables])]
        gradients = sum_over_replicas(replica, gradients)
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        # The optimizer sums over replicas again what is already the sum on each of them.
        self.optimizer.apply([g / replica.num_replicas_in_sync for g in gradients], variables)
        return {
            "loss": sum_over_replicas(replica, loss),
            "tokens": total_weight,
            "padding_share": 1.0 - total_weight / positions,
            "gradient_norm": norm,
            "learning_rate": learning_rate,
        }


def sum_over_replicas(replica: tf.distribute.ReplicaContext, values):
    """The sum of each tensor over all replicas; with one replica the tensors themselves."""
    if replica.num_replicas_in_sync == 1:
        return values
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)


def build_optimizer(settings: OptimizerSettings, learning_rate) -> keras.optimizers.Optimizer:
    """AdamW that leaves biases and normalization layers undecayed.

    Args:
        learning_rate: number or Keras schedule.
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate,
        weight_decay=settings.weight_decay,
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        epsilon=settings.epsilon,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "scale", "offset"])
    return optimizer
