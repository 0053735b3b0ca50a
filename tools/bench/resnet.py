"""Training and inference pictures/s of CIFAR's ResNet-20: 128 pictures of 32 x 32, SGD with momentum.

    python tools/bench/resnet.py                                    ours alone
    python tools/bench/resnet.py --against "PYTHON peer_script.py"  ours and a peer in turn, A B A B, with ratios

Ours has a replica on each core (`training.cpu_replicas`), so that batch normalization takes the statistics of its part
of the batch. Inference is measured on one device, which then has one core.

The peer prints `img/s X` for training. For Keras at its best let the command begin with `env TF_ENABLE_ONEDNN_OPTS=1`.
Nothing else should run meanwhile.
"""

from __future__ import annotations

import os

from side_by_side import main, median_seconds, seconds_of_a_step

FIGURES = {"training pictures/s": r"img/s ([\d.]+)"}
BATCH_SIZE, SIDE, CLASSES = 128, 32, 10
REPLICAS = os.cpu_count() or 1


def measure() -> None:
    """Prints our figures."""
    from kerasllm.environment import build_strategy, configure

    configure()
    import keras
    import numpy as np
    import tensorflow as tf

    from kerasllm.models.resnet import ResNet
    from kerasllm.training.objectives import cross_entropy
    from kerasllm.training.optimizer_settings import MomentumSettings
    from kerasllm.training.optimizers import build_optimizer
    from kerasllm.training.trainer import Trainer

    def objective(model, batch, training):
        losses = cross_entropy(model(batch["image"], training=training), batch["labels"])
        return losses, tf.ones_like(losses)

    strategy = build_strategy(cpu_replicas=REPLICAS)
    keras.utils.set_random_seed(1)
    generator = np.random.default_rng(0)
    image = tf.constant(generator.normal(size=(BATCH_SIZE, SIDE, SIDE, 3)).astype("float32"))
    batch = {"image": image, "labels": tf.constant(generator.integers(0, CLASSES, BATCH_SIZE).astype("int32"))}
    with strategy.scope():
        model = ResNet(SIDE, SIDE, 3, CLASSES)
        trainer = Trainer(model, objective)
        trainer.compile(optimizer=build_optimizer(MomentumSettings(), 0.1, model.trainable_variables))
    step = seconds_of_a_step(trainer, batch, 20)
    print(f"training img/s {BATCH_SIZE / step:.1f}", flush=True)
    infer = tf.function(lambda: model(image), autograph=False)
    seconds = median_seconds(lambda: infer().numpy(), warm_up=2, count=10)
    print(f"inference pictures/s {BATCH_SIZE / seconds:.1f}", flush=True)


if __name__ == "__main__":
    main(__file__, __doc__, measure, FIGURES)
