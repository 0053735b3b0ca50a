"""TF_CONFIG is read strictly, and the Kubernetes manifest gives every worker one that is right."""

import json

import pytest
from ruamel.yaml import YAML

from kerasllm.cluster import Cluster, join_cluster, read_cluster
from kerasllm.errors import UserError

TWO = ["a:1", "b:2"]


def config(cluster, **task):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def test_without_other_workers_there_is_no_cluster():
    assert read_cluster({}) is None
    assert read_cluster({"TF_CONFIG": " "}) is None
    assert read_cluster(config({"worker": ["a:1"]}, type="worker", index=0)) is None


def test_the_chief_is_worker_0_however_it_is_named():
    assert read_cluster(config({"worker": TWO}, type="worker", index=1)) == Cluster(("a:1", "b:2"), 1)
    named = {"worker": TWO, "chief": ["c:3"]}
    assert read_cluster(config(named, type="chief", index=0)) == Cluster(("c:3", "a:1", "b:2"), 0)
    assert read_cluster(config(named, type="worker", index=1)) == Cluster(("c:3", "a:1", "b:2"), 2)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TF_CONFIG": "{worker"}, r"^TF_CONFIG: is not JSON \(.*\); see tools/train/kubernetes.yaml"),
        ({"TF_CONFIG": "[]"}, "cluster.worker: is missing; list the host:port"),
        (config({"chief": ["a:1"]}, type="chief", index=0), "cluster.worker: is missing"),
        (config({"worker": TWO, "ps": ["c:3"]}, type="worker", index=0), "cluster.ps: only `worker` and `chief`"),
        (config({"worker": TWO, "chief": ["c:3", "d:4"]}, type="chief", index=0), "cluster.chief: there is one chief"),
        (
            config({"worker": ["a:1", "b"]}, type="worker", index=0),
            r'cluster.worker: is no list of host:port, but \["a',
        ),
        (config({"worker": "a:1"}, type="worker", index=0), "cluster.worker: is no list of host:port"),
        (config({"worker": ["a:1", "b:70000"]}, type="worker", index=0), "no list of host:port"),
        (config({"worker": ["a:1", "a:1"]}, type="worker", index=0), "cluster: a:1 is listed twice"),
        (config({"worker": TWO}), "task.type: null is not in the cluster; use worker$"),
        (config({"worker": TWO}, type="evaluator", index=0), 'task.type: "evaluator" is not in the cluster'),
        (config({"worker": TWO}, type="worker", index=2), "task.index: 2 is not in cluster.worker, which has 0 to 1"),
        (config({"worker": TWO}, type="worker", index="0"), 'task.index: "0" is not in cluster.worker'),
        (config({"worker": TWO}, type="worker", index=-1), "task.index: -1 is not in"),
        (config({"worker": TWO}, type="worker"), "task.index: null is not in"),
    ],
)
def test_what_is_wrong_is_named(environment, message):
    with pytest.raises(UserError, match=message):
        read_cluster(environment)


def test_a_task_that_is_not_there_is_an_error_before_anything_starts(run_command, tmp_path):
    environment = config({"worker": TWO}, type="worker", index=2)
    command = ("train", "translate/dates_tiny", "--run-dir", str(tmp_path / "run"))
    refused = run_command(*command, **environment)
    assert refused.returncode == 2
    assert refused.stderr == "error: TF_CONFIG: task.index: 2 is not in cluster.worker, which has 0 to 1\n"
    assert not (tmp_path / "run").exists()


def test_trials_are_not_compared_on_several_machines(run_command, tmp_path):
    environment = config({"worker": TWO}, type="worker", index=0)
    command = ("compare", "translate/dates_tiny", "--over", "seed=1,2", "--run-dir", str(tmp_path / "run"))
    refused = run_command(*command, **environment)
    assert refused.returncode == 2
    assert "compare runs on one machine; unset TF_CONFIG" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_worker_without_gpus_is_one_replica():
    with pytest.raises(UserError, match=r"training.num_replicas: 99 asked for on each worker, and .*; lower it"):
        join_cluster(Cluster(("a:1", "b:2"), 0), 99, {})


def test_the_kubernetes_manifest_gives_every_worker_its_place(repository):
    text = (repository / "tools" / "train" / "kubernetes.yaml").read_text("utf-8")
    service, job = YAML(typ="safe").load_all(text)
    template = job["spec"]["template"]["spec"]
    (container,) = template["containers"]
    variables = {entry["name"]: entry for entry in container["env"]}
    number = job["spec"]["completions"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["parallelism"] == number
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert template["subdomain"] == service["metadata"]["name"]
    assert list(variables).index("INDEX") < list(variables).index("TF_CONFIG"), "only earlier ones are filled in"
    # An Indexed Job names its pods NAME-INDEX, and they are reached as NAME-INDEX.SUBDOMAIN.
    port = container["ports"][0]["containerPort"]
    hosts = tuple(f"{job['metadata']['name']}-{index}.{template['subdomain']}:{port}" for index in range(number))
    for index in range(number):
        value = variables["TF_CONFIG"]["value"].replace("$(INDEX)", str(index))
        assert read_cluster({"TF_CONFIG": value}) == Cluster(hosts, index)
