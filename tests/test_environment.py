"""What is set before TensorFlow loads, and the devices that a run gets. TensorFlow runs in fresh processes here."""

import platform

import pytest


def test_importing_the_package_sets_the_environment_and_loads_nothing_heavy(run_python):
    code = """
import sys, os, kerasllm
assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1", os.environ
assert os.environ["KERAS_BACKEND"] == "tensorflow"
heavy = {"tensorflow", "keras", "numpy", "pydantic", "rich", "ruamel.yaml"} & set(sys.modules)
assert not heavy, heavy
assert kerasllm.load_recipe.__module__ == "kerasllm.recipe"
"""
    result = run_python("-c", code, TF_ENABLE_ONEDNN_OPTS="1")
    assert result.returncode == 0, result.stderr


def test_what_the_user_has_set_stays(run_python):
    code = "import os, kerasllm; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    assert run_python("-c", code, TF_ENABLE_ONEDNN_OPTS="0").stdout.strip() == "0"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs an allocator that gives memory back")
def test_memory_that_is_freed_is_kept_unless_the_user_says_otherwise(run_python):
    code = """
import kerasllm, numpy
def pages():
    return int(open("/proc/self/statm").read().split()[1])
before = pages()
numpy.ones(8_000_000)
print(pages() - before > 10_000)
"""
    assert run_python("-c", code).stdout.strip() == "True"
    user = {"MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000"}
    assert run_python("-c", code, **user).stdout.strip() == "False"


def test_devices_and_seeds(run_python):
    code = """
from kerasllm.environment import UNUSED_BY_COMMANDS, build_strategy, load_tensorflow, seed_everything
from kerasllm.errors import UserError
import os, sys
os.environ.pop("TF_NUM_INTRAOP_THREADS", None)
load_tensorflow(without=UNUSED_BY_COMMANDS)
import keras, numpy, random, tensorflow as tf

assert not {"sklearn", "scipy.stats", "matplotlib.pyplot"} & set(sys.modules), "TensorFlow imports more than it needs"
import matplotlib.pyplot, sklearn.linear_model

strategy = build_strategy(2)
assert strategy.num_replicas_in_sync == 2, strategy
assert build_strategy(None, 2).num_replicas_in_sync == 2
assert build_strategy(1, 2).num_replicas_in_sync == 1
assert tf.config.threading.get_intra_op_parallelism_threads() == max(1, os.cpu_count() // 2)
try:
    build_strategy(3)
except UserError as error:
    assert "3 replicas asked for, and this process has 2" in str(error), error
else:
    raise AssertionError("three replicas on two devices")

def draw():
    seed_everything(7)
    dropout = keras.layers.Dropout(0.5)(tf.ones([64]), training=True)
    return random.random(), numpy.random.rand(), float(tf.random.uniform([])), dropout.numpy().tolist()

assert draw() == draw()
"""
    result = run_python("-c", code, CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "TensorFlow's start-up messages are not quiet"


def test_start_up_messages_are_shown_if_tensorflow_cannot_be_loaded(run_python, tmp_path):
    (tmp_path / "tensorflow.py").write_text("import os\nos.write(2, b'libcuda.so: broken')\nraise ImportError('no')\n")
    code = "from kerasllm.environment import load_tensorflow; load_tensorflow()"
    result = run_python("-c", code, PYTHONPATH=str(tmp_path), TF_CPP_MIN_LOG_LEVEL="3")
    assert result.returncode == 1
    assert result.stderr.startswith("libcuda.so: broken")
    assert result.stderr.endswith("ImportError: no\n")
