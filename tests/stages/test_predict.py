"""Answers come in the order of the questions, whatever the batches."""

import pytest

from kerasllm.errors import UserError
from kerasllm.stages.predict import predict

TEXTS = [
    "Friday, March 5, 2021",
    "1. Mai 1999",
    "",
    "2021年3月5日 星期五",
    "5 mars 2021",
    "the quick brown fox",
    "1. Mai 1999",
]


def test_order_and_answers_do_not_depend_on_the_batches(trained_run, monkeypatch):
    together = predict(trained_run, iter(TEXTS))
    monkeypatch.setattr("kerasllm.runs.trained_run.BATCH_SIZE", 2)
    in_pairs = predict(trained_run, TEXTS)
    assert [row["source"] for row in together] == TEXTS
    assert [row["text"] for row in together] == [row["text"] for row in in_pairs]
    assert [row["score"] for row in together] == pytest.approx([row["score"] for row in in_pairs], abs=1e-4)
    assert together[1]["text"] == together[6]["text"]
    assert together[1]["score"] == pytest.approx(together[6]["score"], abs=1e-5)


def test_overrides_change_the_search(trained_run):
    (beam,) = predict(trained_run, TEXTS[:1])
    (short,) = predict(trained_run, TEXTS[:1], ["generation.max_extra_tokens=1", "generation.max_length_ratio=0.001"])
    assert len(beam["text"]) > 1
    assert len(short["text"]) <= 1


def test_no_texts_no_answers(trained_run):
    assert predict(trained_run, []) == []


def test_no_run_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"nowhere: holds no run; make one with `kerasllm train RECIPE --run-dir .*nowhere`"
    ):
        predict(tmp_path / "nowhere", ["text"])
