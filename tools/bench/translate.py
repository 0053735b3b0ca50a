"""Training tokens/s and translated sentences/s at the shape of a Marian model of 3 + 3 layers x 256.

    python tools/bench/translate.py                                    ours alone
    python tools/bench/translate.py --against "PYTHON peer_script.py"  ours and a peer in turn, A B A B, with ratios

The peer prints `train tgt tok/s X` and `beam 5 sent/s X`. Nothing else should run meanwhile.
"""

from __future__ import annotations

from side_by_side import main, median_seconds, seconds_of_a_step

FIGURES = {"training tokens/s": r"train tgt tok/s ([\d.]+)", "beam 5 sentences/s": r"beam 5 sent/s ([\d.]+)"}
VOCABULARY_SIZE, BATCH_SIZE, LENGTH = 10_000, 128, 32
SENTENCES, BEAM_SIZE = 64, 5


def measure() -> None:
    """Prints our figures."""
    from kerasllm.environment import build_strategy, configure

    configure()
    import keras
    import numpy as np
    import tensorflow as tf

    from kerasllm.generation.beam import beam_search
    from kerasllm.models.encoder_decoder import EncoderDecoder
    from kerasllm.training.objectives import cross_entropy
    from kerasllm.training.optimizer_settings import AdamWSettings
    from kerasllm.training.optimizers import build_optimizer
    from kerasllm.training.trainer import Trainer

    keras.utils.set_random_seed(1)
    ids = np.random.default_rng(0).integers(3, VOCABULARY_SIZE, (BATCH_SIZE, 2 * LENGTH + 1)).astype("int32")
    batch = {"source": tf.constant(ids[:, :LENGTH]), "target": tf.constant(ids[:, LENGTH:])}

    def objective(model, batch, training):
        inputs = {"encoder_token_ids": batch["source"], "decoder_token_ids": batch["target"][:, :-1]}
        losses = cross_entropy(model(inputs, training=training), batch["target"][:, 1:])
        return losses, tf.ones_like(losses)

    strategy = build_strategy()
    with strategy.scope():
        model = EncoderDecoder(VOCABULARY_SIZE, 3, 8, 256, 1024, 128, activation="silu", dropout=0.1)
        trainer = Trainer(model, objective)
        trainer.compile(optimizer=build_optimizer(AdamWSettings(), 1e-4, model.trainable_variables))
    step = seconds_of_a_step(trainer, batch, 10)
    print(f"train tgt tok/s {BATCH_SIZE * LENGTH / step:.1f}", flush=True)

    @tf.function(autograph=False)
    def search(source: tf.Tensor) -> tf.Tensor:
        step, empty_caches = model.begin_decoding(source)
        lengths = tf.fill([SENTENCES], LENGTH)
        return beam_search(step, empty_caches, lengths, BEAM_SIZE, start_id=1, end_id=VOCABULARY_SIZE).token_ids

    source = batch["source"][:SENTENCES]
    seconds = median_seconds(lambda: search(source).numpy(), warm_up=1, count=5)
    assert search(source).shape == (SENTENCES, BEAM_SIZE, LENGTH)
    print(f"beam {BEAM_SIZE} sent/s {SENTENCES / seconds:.1f}", flush=True)


if __name__ == "__main__":
    main(__file__, __doc__, measure, FIGURES)
