"""Entities and figures as conlleval counts them, by hand."""

import pytest

from kerasllm.metrics.entities import entities_of, entity_metrics


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O B-A I-A O", [(1, 3, "A")]),
        ("O I-A I-A O", [(1, 3, "A")]),
        ("B-A B-A", [(0, 1, "A"), (1, 2, "A")]),
        ("B-A I-B I-B", [(0, 1, "A"), (1, 3, "B")]),
        ("I-A B-A I-A", [(0, 1, "A"), (1, 3, "A")]),
        ("O O I-A", [(2, 3, "A")]),
        ("B-A O I-A", [(0, 1, "A"), (2, 3, "A")]),
        ("B-x-y I-x-y", [(0, 2, "x-y")]),
        ("O", []),
        ("", []),
    ],
)
def test_entities_by_hand(tags, entities):
    assert entities_of(tags.split()) == entities


def test_figures_by_hand():
    wanted = ["B-A I-A O B-B", "B-A O", "O"]
    given = ["B-A I-A O B-A", "I-A I-A", "B-B"]
    metrics = entity_metrics([row.split() for row in wanted], [row.split() for row in given])
    # Right: A 0-2 of the first. Given besides: A 3-4, A 0-2 (too long), B 0-1. Wanted besides: B 3-4, A 0-1.
    assert (metrics["precision"], metrics["recall"]) == (1 / 4, 1 / 3)
    assert metrics["f1"] == pytest.approx(2 * (1 / 4) * (1 / 3) / (1 / 4 + 1 / 3))
    assert metrics["accuracy"] == 3 / 7
    assert metrics["per_type"] == {
        "A": {"precision": 1 / 3, "recall": 1 / 2, "f1": pytest.approx(0.4), "entities": 2},
        "B": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "entities": 1},
    }


def test_nothing_to_find_and_a_missing_tag():
    assert entity_metrics([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0}
    with pytest.raises(ValueError, match="shorter"):
        entity_metrics([["O", "O"]], [["O"]])
