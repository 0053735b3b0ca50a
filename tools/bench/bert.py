"""Training and inference tokens/s of a BERT of 6 layers x 384: 32 sequences of 128, 4 classes, dropout 0.1.

    python tools/bench/bert.py                                    ours alone
    python tools/bench/bert.py --against "PYTHON peer_script.py"  ours and a peer in turn, A B A B, with ratios

The peer prints `median ... tok/s X` for training and `infer tok/s X`. For keras-hub at its best let the command begin
with `env TF_ENABLE_ONEDNN_OPTS=1`. Nothing else should run meanwhile.
"""

from __future__ import annotations

from side_by_side import main, median_seconds, seconds_of_a_step

FIGURES = {"training tokens/s": r"median.* tok/s ([\d.]+)", "inference tokens/s": r"infer tok/s ([\d.]+)"}
VOCABULARY_SIZE, BATCH_SIZE, LENGTH, CLASSES = 30_522, 32, 128, 4


def measure() -> None:
    """Prints our figures."""
    from kerasllm.environment import build_strategy, configure

    configure()
    import keras
    import numpy as np
    import tensorflow as tf

    from kerasllm.layers.heads import ClassificationHead
    from kerasllm.models.bert import Bert
    from kerasllm.training.objectives import cross_entropy
    from kerasllm.training.optimizer_settings import AdamWSettings
    from kerasllm.training.optimizers import build_optimizer
    from kerasllm.training.trainer import Trainer

    class Classifier(keras.Model):
        def __init__(self):
            super().__init__()
            self.bert = Bert(VOCABULARY_SIZE, num_layers=6, num_heads=12, hidden_dim=384, intermediate_dim=1536)
            self.head = ClassificationHead(CLASSES, 384)
            self.built = True

        def call(self, token_ids, training=False):
            return self.head(self.bert.summary_of({"token_ids": token_ids}, training=training), training=training)

    def objective(model, batch, training):
        losses = cross_entropy(model(batch["token_ids"], training=training), batch["labels"])
        return losses, tf.ones_like(losses)

    keras.utils.set_random_seed(1)
    generator = np.random.default_rng(0)
    ids = tf.constant(generator.integers(1, VOCABULARY_SIZE, (BATCH_SIZE, LENGTH)).astype("int32"))
    batch = {"token_ids": ids, "labels": tf.constant(generator.integers(0, CLASSES, BATCH_SIZE).astype("int32"))}
    with build_strategy().scope():
        model = Classifier()
        trainer = Trainer(model, objective)
        trainer.compile(optimizer=build_optimizer(AdamWSettings(), 2e-5, model.trainable_variables))
    step = seconds_of_a_step(trainer, batch, 10)
    print(f"step median {step:.3f} s, tok/s {BATCH_SIZE * LENGTH / step:.1f}", flush=True)
    infer = tf.function(lambda: model(ids), autograph=False)
    seconds = median_seconds(lambda: infer().numpy(), warm_up=2, count=6)
    print(f"infer tok/s {BATCH_SIZE * LENGTH / seconds:.1f}", flush=True)


if __name__ == "__main__":
    main(__file__, __doc__, measure, FIGURES)
