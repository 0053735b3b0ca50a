"""The translate task: its features, its weights, its figures, and answers that stay within the model's reach."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.settings import BatchingSettings, CleaningSettings, TokenizerSettings
from kerasllm.data.tokenizer_training import train_tokenizer
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.generation.settings import GenerationSettings
from kerasllm.models.settings import EncoderDecoderSettings
from kerasllm.tasks.translate import Translate


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    tokenizer = train_tokenizer(
        TokenizerSettings(kind="characters"), CleaningSettings(), ["abcde", "ab"], tmp_path_factory.mktemp("tokenizer")
    )
    sizes = EncoderDecoderSettings(num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=12)
    generation, batching = GenerationSettings(beam_size=3), BatchingSettings(max_sequence_length=12)
    task = Translate(SimpleNamespace(model=sizes, generation=generation, batching=batching), Vocabulary(tokenizer))
    keras.utils.set_random_seed(1)
    task.build_model()
    return task


def test_features(task):
    """a and b are the likeliest characters, ids 4 and 5; the source ends, the target starts and ends."""
    features = task.encode({"source": tf.constant(["ab", ""]), "target": tf.constant(["b", "ba"])})
    assert features["encoder_token_ids"].to_list() == [[4, 5, 2], [2]]
    assert features["decoder_token_ids"].to_list() == [[1, 5, 2], [1, 5, 4, 2]]


def test_loss_weighs_every_next_token_and_no_padding(task):
    batch = {
        "encoder_token_ids": tf.constant([[4, 5, 2], [2, 0, 0]]),
        "decoder_token_ids": tf.constant([[1, 5, 2, 0], [1, 5, 4, 2]]),
    }
    losses, weights = task.loss(task.forward(task.model, batch, training=False), batch, label_smoothing=0.0)
    np.testing.assert_array_equal(weights, [[1, 1, 0], [1, 1, 1]])
    inputs = {"encoder_token_ids": batch["encoder_token_ids"], "decoder_token_ids": batch["decoder_token_ids"][:, :3]}
    log_probabilities = tf.nn.log_softmax(task.model(inputs)).numpy()
    assert float(losses[1, 2]) == pytest.approx(-log_probabilities[1, 2, 2], rel=1e-5)


def test_labels_are_smoothed_by_the_share_that_is_asked_for(task):
    """V is 9: p_y = 1/2 against 1/16 for each other; q_y = 0.9 + 0.1 / 9."""
    batch = {"decoder_token_ids": tf.constant([[1, 5]])}
    logits = tf.math.log(tf.tensor_scatter_nd_update(tf.fill([1, 1, 9], 1 / 16), [[0, 0, 5]], [0.5]))
    losses, _ = task.loss(logits, batch, label_smoothing=0.1)
    expected = (0.9 + 0.1 / 9) * np.log(2) + 0.8 / 9 * np.log(16)
    assert float(losses[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_any_text_is_answered(task):
    """Nothing, unknown characters, and more than the model has positions."""
    answers = task.answer(tf.constant(["", "日本", "abc" * 100]))
    assert answers["text"].shape == (3,)
    assert np.isfinite(answers["score"]).all()


def test_the_n_best_are_in_order(task):
    """Those that ended come first, and each of the two kinds is in the order of its scores."""
    best = task.search(tf.constant(["abc", "d"]))
    assert best.token_ids.shape[:2] == (2, 3)
    for token_ids, scores in zip(best.token_ids.numpy(), best.scores.numpy(), strict=True):
        rank = [(task.tokenizer.end_id not in ids, -score) for ids, score in zip(token_ids, scores, strict=True)]
        assert rank == sorted(rank)


def test_an_answer_does_not_depend_on_its_batch(task):
    alone = task.answer(tf.constant(["abc"]))
    together = task.answer(tf.constant(["abcdeabcde", "abc", ""]))
    assert together["text"][1] == alone["text"][0]
    assert float(together["score"][1]) == pytest.approx(float(alone["score"][0]), abs=1e-5)


def test_metrics(task):
    answers = [{"text": "Das ist ein guter Test."}, {"text": "Nein!"}]
    metrics = task.metrics(answers, ["Das ist ein guter Test.", "Ja."])
    assert metrics["exact_match"] == 0.5
    assert set(task.metric_names) - {"perplexity"} < set(metrics)
    perfect = task.metrics([{"text": "Das ist gut so."}], ["Das ist gut so."])
    assert perfect["bleu"] == pytest.approx(100.0)
    assert perfect["chrf"] == pytest.approx(100.0)
    assert {"tok:13a", "case:mixed"} <= set(perfect["bleu_signature"].split("|"))
