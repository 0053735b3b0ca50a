"""How far the weights are, after 8 steps, from those of one device that takes each batch whole.

    python tools/bench/exactness.py

A small encoder-decoder is trained with AdamW on batches whose padding lies unevenly, for every combination of replicas
(logical CPU devices), micro-batches, clipping and loss scaling, with a moving average of the weights. Shown is the
relative difference |w - w_whole| / |w_whole| over all weights in float32, of the weights and of their average. The
loss scale is doubled every second step, so it takes four values in the run; "whole" has none.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

REPLICAS, MICRO_BATCHES, CLIP_NORMS, SCALED = (1, 2), (1, 3), (None, 0.05), (False, True)
STEPS, DECAY = 8, 0.5


def train(num_replicas: int) -> None:
    """Prints, for every way to take micro-batches and to clip, the weights and their average."""
    from kerasllm.environment import build_strategy, configure

    configure()
    strategy = build_strategy(num_replicas)
    found = {}
    for split in itertools.product(MICRO_BATCHES, CLIP_NORMS, SCALED):
        found[str(split)] = trained_weights(strategy, *split)
    print(json.dumps(found))


def batches():
    """int32 [6, 9] token ids; the second half of the rows is mostly padding."""
    import numpy as np

    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        ids = rng.integers(3, 20, (6, 9)).astype("int32")
        for row, length in enumerate([9, 8, 9, 2, 3, 2]):
            ids[row, length:] = 0
        yield ids


def trained_weights(strategy, micro_batches: int, clip_norm: float | None, is_scaled: bool) -> list[list[float]]:
    """The weights after all steps, and their moving average, each as one flat list."""
    import keras
    import numpy as np
    import tensorflow as tf

    from kerasllm.models.encoder_decoder import EncoderDecoder
    from kerasllm.training.objectives import cross_entropy
    from kerasllm.training.optimizer_settings import AdamWSettings
    from kerasllm.training.optimizers import build_optimizer
    from kerasllm.training.step_guard import LossScale, StepGuard
    from kerasllm.training.trainer import Trainer

    def elements():
        for ids in batches():
            for share in np.array_split(ids, strategy.num_replicas_in_sync):
                yield tuple(np.array_split(share, micro_batches))

    def objective(model, ids, training):
        logits = model({"encoder_token_ids": ids, "decoder_token_ids": ids[:, :-1]}, training=training)
        return cross_entropy(logits, ids[:, 1:], 0.1), tf.cast(ids[:, 1:] != 0, tf.float32)

    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = EncoderDecoder(20, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, dropout=0.0)
        guard = StepGuard(loss_scale=LossScale(growth_steps=2)) if is_scaled else None
        trainer = Trainer(model, objective, clip_norm, average_decay=lambda step: tf.constant(DECAY), guard=guard)
        trainer.compile(optimizer=build_optimizer(AdamWSettings(epsilon=1e-4), 0.01, model.trainable_variables))
    signature = (tf.TensorSpec([None, None], tf.int32),) * micro_batches
    dataset = strategy.distribute_datasets_from_function(
        lambda context: tf.data.Dataset.from_generator(elements, output_signature=signature)
    )
    trainer.fit(dataset, steps_per_epoch=STEPS, shuffle=False, verbose=0)

    def flat() -> list[float]:
        return np.concatenate([np.ravel(weight.value) for weight in model.weights]).tolist()

    weights = flat()
    with trainer.answering_weights():
        return [weights, flat()]


def main() -> None:
    """Trains in a process for each number of replicas, and prints the table."""
    import numpy as np

    found = {}
    for num_replicas in REPLICAS:
        command = [sys.executable, __file__, str(num_replicas)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        found[num_replicas] = json.loads(done.stdout.splitlines()[-1])
    print("| replicas | micro-batches | clip norm | loss scale | weights | their average |\n|---|---|---|---|---|---|")
    combinations = itertools.product(REPLICAS, MICRO_BATCHES, CLIP_NORMS, SCALED)
    for num_replicas, micro_batches, clip_norm, scaled in combinations:
        split = found[num_replicas][str((micro_batches, clip_norm, scaled))]
        whole = found[1][str((1, clip_norm, False))]
        pairs = [(np.array(ours), np.array(theirs)) for ours, theirs in zip(split, whole, strict=True)]
        differences = [np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) for ours, theirs in pairs]
        shown = " | ".join(f"{difference:.1e}" for difference in differences)
        print(f"| {num_replicas} | {micro_batches} | {clip_norm or 'none'} | {'yes' if scaled else 'no'} | {shown} |")


if __name__ == "__main__":
    train(int(sys.argv[1])) if len(sys.argv) > 1 else main()
