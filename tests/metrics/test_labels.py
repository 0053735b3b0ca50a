"""Figures of labels and numbers against small cases by hand, and what the picture of confusions shows."""

import math

import numpy as np
import pytest

from kerasllm.errors import UserError
from kerasllm.metrics.labels import draw_confusion, label_by_words, label_metrics, number_metrics, top_k_accuracy


def one_hot(*classes):
    return np.eye(3, dtype=int)[list(classes)]


def test_one_label():
    """Right a a b b c; given a b b b a: a has precision 1/2 and recall 1/2, b 2/3 and 1, c nothing."""
    metrics = label_metrics(one_hot(0, 0, 1, 1, 2), one_hot(0, 1, 1, 1, 0), "abc", one_label=True)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert [metrics[f"{name}_micro"] for name in ("precision", "recall", "f1")] == pytest.approx([3 / 5] * 3)
    assert metrics["precision_macro"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert metrics["recall_macro"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert metrics["f1_macro"] == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    # (c s - sum p t) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)), Gorodkin, 2004
    assert metrics["mcc"] == pytest.approx((3 * 5 - (2 * 2 + 3 * 2)) / math.sqrt((25 - 13) * (25 - 9)))
    assert metrics["per_label"]["b"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "records": 2})
    assert metrics["per_label"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "records": 1}


def test_several_labels():
    """Right {a, b} {c} {}; given {a} {a, c} {}: 2 hits, 1 false, 1 missed, 5 rightly left out."""
    wanted, given = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]]), np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0]])
    metrics = label_metrics(wanted, given, "abc", one_label=False)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["precision_micro"] == metrics["recall_micro"] == pytest.approx(2 / 3)
    assert metrics["precision_macro"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert metrics["recall_macro"] == pytest.approx((1 + 0 + 1) / 3)
    assert metrics["mcc"] == pytest.approx((2 * 5 - 1 * 1) / math.sqrt(3 * 3 * 6 * 6))


def test_numbers():
    """Of 1 2 3 against 1 2 6: deviations -1 0 1 and -2 -1 3."""
    metrics = number_metrics([1, 2, 3], [1, 2, 6])
    assert metrics == pytest.approx({"pearson": 5 / math.sqrt(2 * 14), "spearman": 1.0})
    assert number_metrics([1, 2, 3], [3, 1, 1])["spearman"] == pytest.approx(-1.5 / math.sqrt(2 * 1.5))
    assert number_metrics([1, 2, 3], [5, 5, 5]) == {"pearson": 0.0, "spearman": 0.0}


def test_the_picture_has_a_row_for_what_is_right():
    figure = draw_confusion(np.array([[3, 1], [0, 0]]), ["a", "$b$ " + "x" * 40])
    axes = figure.axes[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "3"),
        ((1, 0), "1"),
        ((0, 1), "0"),
        ((1, 1), "0"),
    }
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert [label.get_text()[:6] for label in axes.get_yticklabels()] == ["a", r"\$b\$ "]
    figure.canvas.draw()


def test_the_baseline_goes_by_words_and_chinese_characters():
    texts, labels = ["a good film", "good", "a bad film", "bad", "很好", "好的", "不行", "行不"], [*"ppnnppnn"]
    assert label_by_words(texts, labels, ["Good!", "bad, bad", "真好", "不"]) == [*"pnpn"]
    with pytest.raises(UserError, match=r"classification\.baseline: no text holds a word"):
        label_by_words(["...", "!"], ["p", "n"], ["x"])


def test_the_right_label_is_among_the_likeliest():
    wanted = np.eye(4, dtype=int)[[0, 1, 2]]
    probabilities = [[0.4, 0.3, 0.2, 0.1], [0.4, 0.2, 0.3, 0.1], [0.3, 0.3, 0.1, 0.3]]
    assert [top_k_accuracy(wanted, probabilities, k) for k in (1, 2, 3, 4)] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
