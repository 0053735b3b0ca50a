"""The encoder-decoder: what its answers may depend on, and that its one forward path gives them in every use."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.models.settings import EncoderDecoderSettings


def build(**changes) -> EncoderDecoder:
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32, "max_sequence_length": 20}
    return EncoderDecoder(30, **{**sizes, "dropout": 0.5, **changes})


@pytest.fixture(params=["pre", "post"])
def model(request) -> EncoderDecoder:
    return build(normalization=request.param, positions="learned" if request.param == "post" else "sinusoidal")


def logits(model, source, target):
    inputs = {"encoder_token_ids": tf.constant(source), "decoder_token_ids": tf.constant(target)}
    return model(inputs).numpy()


def random_ids(*shape):
    return np.random.default_rng(0).integers(1, 30, shape).astype("int32")


def test_a_position_does_not_see_the_targets_after_it(model):
    source, target = random_ids(2, 5), random_ids(2, 6)
    changed = target.copy()
    changed[:, 4:] = 7
    before, after = logits(model, source, target), logits(model, source, changed)
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_padding_changes_nothing(model):
    source, target = random_ids(2, 5), random_ids(2, 6)
    padded = logits(model, np.pad(source, [(0, 0), (0, 3)]), np.pad(target, [(0, 0), (0, 4)]))
    np.testing.assert_allclose(padded[:, :6], logits(model, source, target), atol=1e-5)


def test_every_source_token_is_seen(model):
    source, target = random_ids(1, 5), random_ids(1, 3)
    before = logits(model, source, target)
    for position in range(5):
        changed = source.copy()
        changed[0, position] = source[0, position] % 29 + 1
        assert np.abs(logits(model, changed, target) - before).max() > 1e-4


def test_cached_decoding_equals_one_pass(model):
    source, target = random_ids(2, 5), random_ids(2, 6)
    encoded, encoder_mask = model.encode(tf.constant(source))
    contexts, caches = model.project_contexts(encoded), model.empty_caches(2, 6)
    steps = []
    for position in range(6):
        hidden, caches = model.decode(
            tf.constant(target[:, position : position + 1]),
            contexts,
            encoder_mask,
            mask=tf.range(6)[tf.newaxis] <= position,
            positions=tf.constant([position]),
            caches=caches,
            slot=tf.constant(position),
        )
        steps.append(model.embedding.logits(hidden))
    np.testing.assert_allclose(np.concatenate(steps, axis=1), logits(model, source, target), atol=1e-4)


def test_dropout_only_in_training(model):
    inputs = {"encoder_token_ids": random_ids(1, 5), "decoder_token_ids": random_ids(1, 3)}
    np.testing.assert_array_equal(model(inputs), model(inputs))
    assert np.abs(model(inputs, training=True) - model(inputs)).max() > 1e-3


@pytest.mark.parametrize(
    ("num_heads", "hidden_dim", "intermediate_dim", "parameters"),
    [(8, 512, 2048, 63_082_496), (16, 1024, 4096, 214_245_376)],
)
def test_published_sizes(num_heads, hidden_dim, intermediate_dim, parameters):
    """Vaswani et al., table 3: 65 M and 213 M, with a vocabulary of about 37,000."""
    block_matrices = 4 * hidden_dim * hidden_dim + 4 * hidden_dim
    feed_forward = 2 * hidden_dim * intermediate_dim + hidden_dim + intermediate_dim
    norm = 2 * hidden_dim
    encoder = 6 * (block_matrices + feed_forward + 2 * norm)
    decoder = 6 * (2 * block_matrices + feed_forward + 3 * norm)
    assert encoder + decoder + 37_000 * hidden_dim == parameters
    settings = EncoderDecoderSettings(
        num_heads=num_heads, hidden_dim=hidden_dim, intermediate_dim=intermediate_dim, normalization="post"
    )
    one_layer = EncoderDecoder(100, **{**settings.model_dump(), "num_layers": 1})
    assert sum(np.prod(v.shape) for v in one_layer.trainable_variables) == (encoder + decoder) / 6 + 100 * hidden_dim


def test_variable_paths_name_the_parts():
    paths = [variable.path for variable in build().trainable_variables]
    assert len(set(paths)) == len(paths)
    assert "encoder_layer_1/self_attention/query_key_value/kernel" in paths
    assert "decoder_layer_0/cross_attention/key_value/bias" in paths
