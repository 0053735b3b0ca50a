"""Files that TensorFlow Serving reads beside a model: warm-up requests, and how to put requests into batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerasllm.serving.saved_model import to_bytes

WARMUP_FILE = "tf_serving_warmup_requests"
BATCHING_FILE = "batching_parameters.txt"
BATCHING = """\
# For `tensorflow_model_server --enable_batching --batching_parameters_file=...`: requests that arrive together are
# answered as one batch. A request waits for company at most this long, and is refused (429) behind a full queue.
max_batch_size { value: 64 }
batch_timeout_micros { value: 5000 }
max_enqueued_batches { value: 256 }
# Batches at work at the same time; each uses all cores that are free.
num_batch_threads { value: 2 }
"""


def write_warmup_requests(directory: Path, requests: Sequence[dict[str, Any]]) -> None:
    """Write requests that a server answers before it says that a version is ready.

    Args:
        directory: the version directory; the file lies in its `assets.extra`.
        requests: `{"signature_name": endpoint, "inputs": {name: values}}`, at most 1,000. The load fails if one of them
            fails.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = directory / "assets.extra" / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for each in requests:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.signature_name = each["signature_name"]
            for name, values in each["inputs"].items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(list(map(to_bytes, values))))
            writer.write(log.SerializeToString(deterministic=True))
