"""Warm-up requests are read back with TensorFlow Serving's own messages."""

import re

from kerasllm.serving.warmup import BATCHING, WARMUP_FILE, write_warmup_requests


def test_requests_are_prediction_logs(tmp_path):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    pair = {"signature_name": "serving_default", "inputs": {"text": ["a", "日本"], "other_text": ["b", "c"]}}
    write_warmup_requests(tmp_path, [pair, {"signature_name": "tokenize", "inputs": {"text": [""]}}])
    records = tf.data.TFRecordDataset(str(tmp_path / "assets.extra" / WARMUP_FILE))
    requests = [prediction_log_pb2.PredictionLog.FromString(r.numpy()).predict_log.request for r in records]
    assert [request.model_spec.signature_name for request in requests] == ["serving_default", "tokenize"]
    texts = [tf.make_ndarray(request.inputs["text"]).tolist() for request in requests]
    assert texts == [[b"a", "日本".encode()], [b""]]
    assert tf.make_ndarray(requests[0].inputs["other_text"]).tolist() == [b"b", b"c"]


def test_batching_file_is_what_the_server_parses():
    lines = [line for line in BATCHING.splitlines() if not line.startswith("#")]
    values = dict(re.fullmatch(r"(\w+) \{ value: (\d+) \}", line).groups() for line in lines)
    assert set(values) == {"max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"}
