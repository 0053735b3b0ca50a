"""Several machines that train one run: who they are (TF_CONFIG), how they find each other, what the chief tells all.

TensorFlow is imported inside the functions: importing this module is free.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kerasllm.errors import UserError
from kerasllm.meeting import meet

if TYPE_CHECKING:
    import tensorflow as tf

STARTING_SECONDS = 300
"""Within this TensorFlow's servers have found each other, after all workers have met."""
VISIBLE_SECONDS = 60.0
"""Within this a file that the chief has written is there for the other workers too (network file systems lag)."""


@dataclass(frozen=True)
class Cluster:
    """All workers of a training, and which of them this process is. Worker 0 is the chief: it alone writes.

    Args:
        workers: `host:port` of each.
        index: of this process.
    """

    workers: tuple[str, ...]
    index: int


def read_cluster(environment: Mapping[str, str] | None = None) -> Cluster | None:
    """The cluster that TF_CONFIG describes; None without the variable, or where it names a single worker.

    Both ways of naming the chief are understood: as a job of its own, or as worker 0.

    Args:
        environment: by default that of this process.

    Raises:
        UserError: it is no JSON, or not the description of a cluster with this process in it.
    """
    text = (os.environ if environment is None else environment).get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"TF_CONFIG: is not JSON ({error}); see tools/train/kubernetes.yaml for one that is") from error
    jobs = _read_jobs(config.get("cluster") if isinstance(config, dict) else None)
    workers = (*jobs.get("chief", ()), *jobs.get("worker", ()))
    index = _read_task(config.get("task"), jobs)
    return Cluster(workers, index) if len(workers) > 1 else None


def _read_jobs(cluster: Any) -> dict[str, list[str]]:
    """The addresses of each job, checked."""
    if not isinstance(cluster, dict) or not cluster.get("worker"):
        raise UserError("TF_CONFIG: cluster.worker: is missing; list the host:port of every worker")
    for job, addresses in cluster.items():
        if job not in ("chief", "worker"):
            raise UserError(f"TF_CONFIG: cluster.{job}: only `worker` and `chief` train; leave it out")
        if not isinstance(addresses, list) or not all(map(_is_address, addresses)):
            raise UserError(f"TF_CONFIG: cluster.{job}: is no list of host:port, but {json.dumps(addresses)}")
    if len(cluster.get("chief", ())) > 1:
        raise UserError("TF_CONFIG: cluster.chief: there is one chief; list the others as cluster.worker")
    known = [address for addresses in cluster.values() for address in addresses]
    twice = [address for address in known if known.count(address) > 1]
    if twice:
        raise UserError(f"TF_CONFIG: cluster: {twice[0]} is listed twice; give every worker its own host:port")
    return cluster


def _is_address(address: Any) -> bool:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    return bool(host) and port.isdecimal() and 0 < int(port) < 1 << 16


def _read_task(task: Any, jobs: dict[str, list[str]]) -> int:
    """The number of this process among all workers, the chief first."""
    task = task if isinstance(task, dict) else {}
    job, index = task.get("type"), task.get("index")
    if job not in jobs:
        raise UserError(f"TF_CONFIG: task.type: {json.dumps(job)} is not in the cluster; use {' or '.join(jobs)}")
    if type(index) is not int or not 0 <= index < len(jobs[job]):
        last = len(jobs[job]) - 1
        raise UserError(f"TF_CONFIG: task.index: {json.dumps(index)} is not in cluster.{job}, which has 0 to {last}")
    return index + (len(jobs.get("chief", ())) if job == "worker" else 0)


def join_cluster(cluster: Cluster, num_replicas: int | None, agreed: Mapping[str, str]) -> tf.distribute.Strategy:
    """Waits for all workers, and returns the strategy that trains on their devices: NCCL over GPUs, a ring over CPUs.

    To be called before TensorFlow runs anything. A worker trains on its GPUs or, without one, on its CPU as one device.

    Args:
        num_replicas: GPUs that each worker uses; None means all of them.
        agreed: what must be the same on all workers, by its name.

    Raises:
        UserError: this worker has fewer devices, or see `meet`.
    """
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    replicas = num_replicas or gpus or 1
    if replicas > (gpus or 1):
        has = f"this one has {gpus} GPU(s)" if gpus else "one without a GPU is one replica"
        raise UserError(f"training.num_replicas: {replicas} asked for on each worker, and {has}; lower it")
    meet(cluster.workers, cluster.index, {**agreed, "replicas": f"{replicas} on {'GPU' if gpus else 'CPU'}"})
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=kinds.NCCL if gpus else kinds.RING)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={"GPU": replicas if gpus else 0},
        rpc_layer="grpc",
    )
    with _ended_if_longer(STARTING_SECONDS):
        return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)


@contextmanager
def _ended_if_longer(seconds: int) -> Iterator[None]:
    """Lets the system end this process if the block takes longer: a native wait that no Python code can interrupt.

    Afterwards SIGTERM ends it again, which TensorFlow's server takes for itself.
    """
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def is_alone(strategy: tf.distribute.Strategy) -> bool:
    """Whether one process does all the training."""
    import tensorflow as tf

    return not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes what there is to write."""
    return is_alone(strategy) or strategy.cluster_resolver.task_id == 0


def from_chief(strategy: tf.distribute.Strategy, make: Callable[[], Any]) -> Any:
    """What `make` gives on the chief, on every worker; the others wait for it. It must go through JSON.

    All workers must call it at the same point of the run.
    """
    import numpy as np
    import tensorflow as tf

    if is_alone(strategy):
        return make()
    text = json.dumps(make()).encode("utf-8") if is_chief(strategy) else b""

    def summed(numbers: np.ndarray) -> np.ndarray:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(numbers, tf.float32), axis=None).numpy()

    content = np.zeros(int(summed(np.array([len(text)]))[0]), np.uint8)
    content[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(summed(content).astype(np.uint8).tobytes())


def wait_until_visible(path: os.PathLike[str], is_there: Callable[[], bool]) -> None:
    """Waits for what the chief has written into the shared directory.

    Raises:
        UserError: it does not come.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            raise UserError(f"{path}: the chief wrote it, but it is not here; --run-dir must be shared by all workers")
        time.sleep(0.2)


@contextmanager
def lost_workers_named(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns the errors that TensorFlow raises when another worker is gone into a line for the person.

    Raises:
        UserError: a worker has ended or cannot be reached.
    """
    import tensorflow as tf

    lost = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
    try:
        yield
    except tf.errors.OpError as error:
        is_lost = type(error).__name__ in lost or "Collective ops is aborted" in str(error)
        if is_alone(strategy) or not is_lost:
            raise
        raise UserError(
            "another worker has ended or cannot be reached; look at what it says, then start all workers again with "
            "the same command: the run goes on from its last checkpoint"
        ) from error
