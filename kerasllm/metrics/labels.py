"""How good labels and numbers are that a task has given: figures, the picture of what is taken for what, a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasllm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_WRITTEN_LABELS = 20
"""In a picture of more of them the counts are colours only."""
MANY_TEXTS = 1000
"""From so many on, words and pairs that occur in one text alone are left out: most are, and teach little."""


def label_metrics(wanted: np.ndarray, given: np.ndarray, labels: Sequence[str], one_label: bool) -> dict[str, Any]:
    """Figures of scikit-learn; what would be divided by 0 is 0.

    Args:
        wanted: whether each label is right for each record, int [N, C].
        given: whether it was given, int [N, C].
        labels: their names.
        one_label: every record has exactly one; else each label is a decision of its own.

    Returns:
        `accuracy`, the share of records with exactly the right labels; `precision`, `recall` and `f1` with `_macro`,
        the mean over the labels, and `_micro`, over all decisions together; `mcc`, Matthews' correlation, for one label
        that of its classes, else over all decisions; and `per_label`, a table of the same for each label.
    """
    from sklearn.metrics import matthews_corrcoef, precision_recall_fscore_support

    scores = {
        average: precision_recall_fscore_support(wanted, given, average=average, zero_division=0)
        for average in ("macro", "micro")
    }
    figures = {"accuracy": float((wanted == given).all(axis=1).mean())}
    for index, name in enumerate(("f1", "precision", "recall")):
        for average, values in scores.items():
            figures[f"{name}_{average}"] = float(values[(2, 0, 1)[index]])
    as_classes = (lambda x: x.argmax(axis=1)) if one_label else np.ravel
    figures["mcc"] = float(matthews_corrcoef(as_classes(wanted), as_classes(given)))
    each = precision_recall_fscore_support(wanted, given, average=None, zero_division=0)
    table = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "records": int(n)}
        for label, p, r, f, n in zip(labels, *each, strict=True)
    }
    return {**figures, "per_label": table}


def top_k_accuracy(wanted: np.ndarray, probabilities: Sequence[Sequence[float]], k: int) -> float:
    """How often fewer than k labels are likelier than the right one.

    Args:
        wanted: int [N, C], 1 at the right label of each record and 0 elsewhere.
        probabilities: [N, C].
    """
    found = np.asarray(probabilities)
    of_right = (found * wanted).sum(axis=1, keepdims=True)
    return float(((found > of_right).sum(axis=1) < k).mean())


def number_metrics(wanted: Sequence[float], given: Sequence[float]) -> dict[str, float]:
    """`pearson` and `spearman`: how far two lists of numbers, or their ranks, lie on a line; 0 if one is constant."""
    from scipy.stats import rankdata

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            return 0.0
        return float(np.corrcoef(x, y)[0, 1])

    x, y = np.asarray(wanted, float), np.asarray(given, float)
    return {"pearson": correlation(x, y), "spearman": correlation(rankdata(x), rankdata(y))}


def label_by_words(texts: Sequence[str], labels: Sequence[str], asked: Sequence[str]) -> list[str]:
    """What a simple classifier makes of texts: logistic regression on their words and pairs of words.

    Words are counted as TF-IDF, with the logarithm of how often each occurs, and in lower case.

    Args:
        texts: to learn from, of any length but all in memory.
        labels: of each of them its one label.
        asked: the texts to be labelled.

    Returns:
        The label of each text that was asked for.

    Raises:
        UserError: no text holds a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(
        sublinear_tf=True,
        ngram_range=(1, 2),
        min_df=2 if len(texts) >= MANY_TEXTS else 1,
        token_pattern=r"(?u)[\u3400-\u9fff]|\w+",  # a Chinese character is a word
    )
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise UserError("classification.baseline: no text holds a word; leave it out") from error
    model = LogisticRegression(C=10.0, max_iter=1000).fit(features, labels)
    return model.predict(vectorizer.transform(asked)).tolist()


def draw_confusion(counts: np.ndarray, labels: Sequence[str]) -> Figure:
    """A confusion matrix: a row for each label that is right, a column for each that was given.

    Args:
        counts: of records, int [C, C]; a field is the darker, the greater its share of its row.
        labels: their names.
    """
    from matplotlib.figure import Figure

    size = min(2.5 + 0.45 * len(labels), 20)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.05)
    axes.set(xlabel="given", ylabel="right", title=f"{np.trace(counts):,} of {counts.sum():,} right")
    names = [label if len(label) <= 24 else f"{label[:23]}…" for label in labels]
    names = [name.replace("$", r"\$") for name in names]  # a pair of dollar signs would be set as a formula
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    if len(labels) <= MAX_WRITTEN_LABELS:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    return figure
