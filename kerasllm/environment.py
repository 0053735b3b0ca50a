"""What must be set before TensorFlow loads, the seeds, and the devices that a run trains on.

TensorFlow is imported inside the functions: importing this module is free.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

# oneDNN: TensorFlow leaves it off on AVX2 processors without AVX-512, where it makes training about 1.5 times faster.
# Log level 3: what goes wrong comes as a Python exception; the native log adds lines that mean nothing to a person.
DEFAULTS = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_USE_LEGACY_KERAS": "0",
}


# Of glibc's mallopt: the code of each setting, and the variable by which a user sets it.
ALLOCATOR_SETTINGS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
GREATEST_INT = 2**31 - 1


def configure() -> None:
    """Sets what TensorFlow and Keras read on import, and how memory is allocated; what the user has set stays."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets this process keep memory that it frees, where the C library can be told so.

    Otherwise large tensors go back to the system, and each step gets their pages anew, filled with zeros.
    """
    with contextlib.suppress(OSError, AttributeError):  # no C library of its own, or not glibc
        set_option = ctypes.CDLL(None).mallopt
        for name, code in ALLOCATOR_SETTINGS.items():
            if name not in os.environ:
                set_option(code, GREATEST_INT)


# Keras imports them if they are there, for wrappers and galleries that no command uses: a quarter of its start.
UNUSED_BY_COMMANDS = ("sklearn", "matplotlib")


def load_tensorflow(without: Sequence[str] = ()) -> None:
    """Imports TensorFlow and looks for its devices, without the start-up messages that no setting of it silences.

    They are shown when the import fails, and when the user has set TF_CPP_MIN_LOG_LEVEL.

    Args:
        without: modules that TensorFlow and Keras do not get to import; they can be imported afterwards.
    """
    quiet = os.environ.get("TF_CPP_MIN_LOG_LEVEL") == DEFAULTS["TF_CPP_MIN_LOG_LEVEL"]
    with _standard_error_held_back() if quiet else contextlib.nullcontext(), _left_out(without):
        import tensorflow as tf

        tf.config.list_physical_devices()
    if quiet:
        tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def _left_out(modules: Sequence[str]) -> Iterator[None]:
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # None: its import raises ImportError
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and TensorFlow; on the CPU every operation then gives the same bits each time.

    Not on a GPU: there TensorFlow refuses operations that have no deterministic kernel, cross-entropy among them.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def compute_precision(precision: str) -> Iterator[None]:
    """Layers made in the block compute in `precision`, with weights in float32.

    Args:
        precision: "float32", "bfloat16" or "float16"; the last one needs a `LossScale`.

    Reference: [Micikevicius et al., 2018](https://arxiv.org/abs/1710.03740).
    """
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_strategy(num_replicas: int | None = None, cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Returns a MirroredStrategy over the GPUs of this machine or, without one, over logical CPU devices.

    Only before TensorFlow runs anything can the CPU become more than one device. Keep one strategy per process: two
    with different models abort TensorFlow's CPU collectives, where these are used.

    Args:
        num_replicas: how many devices to use; None means all GPUs, or without one `cpu_replicas`.
        cpu_replicas: how many CPU devices share the cores where `num_replicas` does not say it, if they can.

    Raises:
        UserError: fewer GPUs than `num_replicas`, or CPU devices were fixed at another number before.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.distribute.MirroredStrategy(_first_devices("GPU", len(gpus), num_replicas or len(gpus)))
    count = num_replicas or cpu_replicas
    if count > 1:
        with contextlib.suppress(RuntimeError):  # TensorFlow has run something already, and keeps the single device
            _divide_cpu(count)
    available = len(tf.config.list_logical_devices("CPU"))
    devices = _first_devices("CPU", available, num_replicas or min(cpu_replicas, available))
    # One sum of all gradients; the default on CPU, a collective for each, makes a step of ResNet-20 7 to 12 % longer.
    reduce = tf.distribute.HierarchicalCopyAllReduce() if len(devices) > 1 else None
    return tf.distribute.MirroredStrategy(devices, reduce)


def _divide_cpu(count: int) -> None:
    """Makes `count` devices of the CPU, each of which computes with its part of the cores."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if tf.config.get_logical_device_configuration(cpu) is None:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        if "TF_NUM_INTRAOP_THREADS" not in os.environ:
            tf.config.threading.set_intra_op_parallelism_threads(max(1, (os.cpu_count() or 1) // count))


def _first_devices(kind: str, available: int, wanted: int) -> list[str]:
    """Returns the names of the first `wanted` devices of a kind."""
    from kerasllm.errors import UserError

    if wanted > available:
        raise UserError(f"{wanted} replicas asked for, and this process has {available} {kind} device(s)")
    return [f"{kind}:{index}" for index in range(wanted)]


@contextlib.contextmanager
def _standard_error_held_back() -> Iterator[None]:
    """Keeps what this process writes to file descriptor 2, and writes it only if the block fails."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(original, held_back.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)
