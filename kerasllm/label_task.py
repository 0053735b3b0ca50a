"""What the tasks share that put something into classes: one label of several, several labels at once, or a number.

features    labels  [2]      counted from 1, because 0 stands for padding
            or number [0.25] (value - number_offset) / number_scale
answer      {"label": "good", "probability": 0.9, "probabilities": [0.1, 0.9], "labels": ["bad", "good"]}
            or {"number": 3.75}
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from kerasllm.errors import UserError
from kerasllm.settings import Settings
from kerasllm.task import Task, innermost

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import tensorflow as tf
    from matplotlib.figure import Figure

    from kerasllm.data.vocabulary import Vocabulary

LABEL_METRICS = (
    "accuracy",
    *(f"{name}_{average}" for name in ("f1", "precision", "recall") for average in ("macro", "micro")),
    "mcc",
)
NUMBER_METRICS = ("pearson", "spearman")
TOP = 5


class ClassificationSettings(Settings):
    """What the field `label` holds."""

    kind: Literal["one_label", "several_labels", "number"] = "one_label"
    """The name of one label; names of labels with a separator between them; or a number."""
    separator: str = Field(default=",", min_length=1)
    """Between the names of several labels; spaces around them do not count. A record without any label is dropped by
    the cleaning: give it one of its own, such as `none`."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which one of several labels is given."""
    unlabelled: str | None = None
    """What stands in the data, of the training split alone, where a record has no label, for one_label: it is learnt
    from by `training.objective: {name: pseudo_labels}`."""
    names: dict[str, str] = {}
    """What stands in the data -> name of the label, such as `{0: negative, 1: positive}`; several may share a name.
    Without any, what stands in the data is the name."""
    number_offset: float = 0.0
    """Taken from a number before it is learnt; the mean of all of them is a good one."""
    number_scale: float = Field(default=1.0, gt=0)
    """What a number is divided by then, so that it is learnt in this unit; their standard deviation is a good one."""
    baseline: bool = False
    """Whether `evaluate` also shows what logistic regression on the words makes of the same texts; for one_label."""

    @model_validator(mode="after")
    def _check_kind(self) -> ClassificationSettings:
        if self.kind == "number" and self.names:
            raise ValueError("names are those of labels, and a number has none; leave them out")
        if self.kind != "one_label" and self.baseline:
            raise ValueError(f"there is a baseline for kind: one_label only, and this is {self.kind}; leave it out")
        if self.kind != "one_label" and self.unlabelled is not None:
            raise ValueError(f"unlabelled: is for kind: one_label only, and this is {self.kind}; leave it out")
        for key, name in self.names.items():
            if not name or (self.kind == "several_labels" and self.separator in name):
                raise ValueError(f"names.{key}: '{name}' cannot be the name of a label; give another one")
        return self


class LabelTask(Task):
    """Reads labels, learns them, gives them as answers, and measures these; what they are given to, a task says.

    Raises:
        UserError: there are too few labels, or the objective does not fit what is learnt.
    """

    counted = "records"
    reference = "label"
    label_field = "label"
    unvaried_outputs = ("labels",)
    metric_names = (*LABEL_METRICS, *NUMBER_METRICS)

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        self.settings: ClassificationSettings = recipe.classification
        for key, name in self.settings.names.items():
            if name not in vocabulary.labels:
                raise UserError(
                    f"{recipe.place('classification', 'names', key)}: no record of data.train has the label '{key}'; "
                    "leave its name out, or put it right"
                )
        objective = innermost(recipe.training.objective).name
        if (objective == "pseudo_labels") != (self.settings.unlabelled is not None):
            place = recipe.place("training", "objective")
            raise UserError(f"{place}: pseudo_labels and classification.unlabelled go together; give both or none")
        if self.settings.kind != "number":
            if len(vocabulary.labels) < 2:
                only = ", ".join(map(repr, vocabulary.labels))
                raise UserError(f"data.train: has no other label than {only}; there must be two to choose from")
            return
        if objective == "r_drop":
            raise UserError(
                f"{recipe.place('training', 'objective')}: r_drop compares probabilities, and a number has none; "
                "use supervised, or another kind in classification.kind"
            )

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """How labels are read."""
        return recipe.classification.model_dump(exclude={"threshold", "baseline"})

    @classmethod
    def metric_names_of(cls, recipe: Any) -> tuple[str, ...]:
        """Those of the kind of label."""
        return NUMBER_METRICS if recipe.classification.kind == "number" else LABEL_METRICS

    @classmethod
    def labels_in(cls, recipe: Any, text: str) -> list[str]:
        """The names of the labels of a record: one, several, or none for a number.

        Raises:
            UserError: a number is none.
        """
        settings = recipe.classification
        if settings.kind == "one_label":
            return [] if text == settings.unlabelled else [text]
        if settings.kind == "several_labels":
            return [name for part in text.split(settings.separator) if (name := part.strip())]
        try:
            is_finite = math.isfinite(float(text))
        except ValueError:
            is_finite = False
        if not is_finite:
            raise UserError(f"label '{text}' is not a number; put it right, or choose another classification.kind")
        return []

    @classmethod
    def read_record(cls, recipe: Any, record: dict[str, str]) -> dict[str, str]:
        """A record with the names of its labels in place of what the source has for them.

        Raises:
            UserError: one has no name.
        """
        settings = recipe.classification
        if not settings.names:
            return record
        several = settings.kind == "several_labels"
        found = record["label"].split(settings.separator) if several else [record["label"]]
        found = [text.strip() for text in found if text.strip()]
        for text in found:
            if text not in settings.names and text != settings.unlabelled:
                known = ", ".join(settings.names)
                raise UserError(f"label '{text}' has no name; add one to classification.names, which has {known}")
        return {**record, "label": settings.separator.join(settings.names.get(text, text) for text in found)}

    def encode_labels(self, labels: tf.Tensor) -> dict[str, tf.RaggedTensor]:
        """What stands in the field of the labels, string [B] -> the feature `labels` int32 [B, None], or `number`."""
        import tensorflow as tf

        kind = self.settings.kind
        if kind == "number":
            values = (tf.strings.to_number(labels) - self.settings.number_offset) / self.settings.number_scale
            return {"number": tf.RaggedTensor.from_tensor(values[:, None])}
        if kind == "one_label":
            names = tf.RaggedTensor.from_tensor(labels[:, None])
        else:
            names = tf.strings.split(labels, self.settings.separator)
            names = tf.ragged.map_flat_values(tf.strings.strip, names)
            names = tf.ragged.boolean_mask(names, names != "")
        return {"labels": tf.ragged.map_flat_values(self.vocabulary.number_labels, names) + 1}

    @property
    def num_outputs(self) -> int:
        """What the last layer of a model gives for an example."""
        return 1 if self.settings.kind == "number" else len(self.vocabulary.labels)

    def logits_of(self, outputs: tf.Tensor) -> tf.Tensor:
        """What a softmax makes probabilities of.

        Args:
            outputs: [B, C], of the model.

        Returns:
            Logits [B, 1, C] of one label; [B, C, 2] of several, each of which is a choice between no and yes, so that
            its softmax is a sigmoid; or the number itself, [B, 1, 1].
        """
        import tensorflow as tf

        if self.settings.kind == "several_labels":
            return tf.stack([tf.zeros_like(outputs), outputs], axis=-1)
        return outputs[:, None]

    def loss_of(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], weights: tf.Tensor, label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each decision, or the squared error of a number.

        Args:
            logits: from `logits_of`.
            batch: with `labels` [B, K], each 1 or more, or `number` [B, 1]; where examples are mixed also `share`
                [B, 1], what their loss counts for beside that of `other_labels` [B, K].
            weights: [B, 1], 0 for padding.
            label_smoothing: in [0, 1); a number has nothing to be smoothed.

        Returns:
            Losses in nats and their weights: [B, 1], or for several labels [B, C].
        """
        import tensorflow as tf

        from kerasllm.training.objectives import cross_entropy

        if self.settings.kind == "number":
            return tf.square(logits[:, :, 0] - tf.cast(batch["number"], logits.dtype)), weights

        def losses_of(labels: tf.Tensor) -> tf.Tensor:
            if self.settings.kind == "one_label":
                return cross_entropy(logits, tf.maximum(labels - 1, 0), label_smoothing)
            chosen = tf.reduce_max(tf.one_hot(labels - 1, tf.shape(logits)[1], dtype=tf.int32), axis=1)  # [B, C]
            return cross_entropy(logits, chosen, label_smoothing)

        if self.settings.unlabelled is not None:
            weights = weights * tf.cast(batch["labels"] > 0, weights.dtype)
        losses = losses_of(batch["labels"])
        if "share" in batch:
            losses = batch["share"] * losses + (1.0 - batch["share"]) * losses_of(batch["other_labels"])
        return losses, weights * tf.ones_like(losses)

    def answers_of(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """What examples are taken for, as graph operations.

        Args:
            logits: from `logits_of`.

        Returns:
            `label` string [B], the likeliest or all likely enough with the separator between them; `probability`
            float32 [B], of the one label; `probabilities` float32 [B, C] and `labels` string [B, C], the names that
            they belong to. For a number only `number` float32 [B].
        """
        import tensorflow as tf

        settings = self.settings
        if settings.kind == "number":
            return {"number": logits[:, 0, 0] * settings.number_scale + settings.number_offset}
        names = tf.constant(self.vocabulary.labels)
        labels = tf.tile(names[None], [tf.shape(logits)[0], 1])
        if settings.kind == "several_labels":
            probabilities = tf.nn.softmax(logits)[:, :, 1]  # [B, C]
            chosen = tf.ragged.boolean_mask(labels, probabilities >= settings.threshold)
            joined = tf.strings.reduce_join(chosen, axis=1, separator=settings.separator)
            return {"label": joined, "probabilities": probabilities, "labels": labels}
        probabilities = tf.nn.softmax(logits)[:, 0]  # [B, C]
        return {
            "label": self.vocabulary.name_labels(tf.argmax(probabilities, axis=-1)),
            "probability": tf.reduce_max(probabilities, axis=-1),
            "probabilities": probabilities,
            "labels": labels,
        }

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """How good answers are.

        Returns:
            For labels `accuracy` (for several: all of them right), `precision_...`, `recall_...` and `f1_...` with
            `macro` (mean over the labels) and `micro` (over all decisions), 0 to 1, where nothing is to be divided by
            0; `mcc`, Matthews' correlation, -1 to 1 (for several over all decisions); and the table `per_label`. Where
            one of more than 5 labels is right, also `top_5_accuracy`: how often it is among the 5 likeliest.
            For numbers `pearson` and `spearman`, -1 to 1, and 0 where the answers are all the same.
        """
        if self.settings.kind == "number":
            from kerasllm.metrics.labels import number_metrics

            return number_metrics([float(text) for text in references], [answer["number"] for answer in answers])
        from kerasllm.metrics.labels import top_k_accuracy

        figures = self.figures_of([answer["label"] for answer in answers], references)
        if self.settings.kind == "one_label" and len(self.vocabulary.labels) > TOP:
            probabilities = [answer["probabilities"] for answer in answers]
            figures[f"top_{TOP}_accuracy"] = top_k_accuracy(self.indicators(references), probabilities, TOP)
        return figures

    def figures_of(self, given: list[str], references: list[str]) -> dict[str, Any]:
        """What of `metrics` follows from the labels alone."""
        from kerasllm.metrics.labels import label_metrics

        wanted, is_one = self.indicators(references), self.settings.kind == "one_label"
        return label_metrics(wanted, self.indicators(given), self.vocabulary.labels, is_one)

    def indicators(self, texts: list[str]) -> np.ndarray:
        """Whether each label stands in each text: int [N, C], as NumPy array."""
        import numpy as np

        places = {name: index for index, name in enumerate(self.vocabulary.labels)}
        found = np.zeros((len(texts), len(places)), int)
        for row, text in enumerate(texts):
            found[row, [places[name] for name in self.labels_in(self.recipe, text)]] = 1
        return found

    def pictures(
        self, answers: list[dict[str, Any]], references: list[str], columns: Sequence[Sequence[Any]]
    ) -> dict[str, Figure]:
        """`confusion`: how often each label was taken for each; only where a record has one label."""
        if self.settings.kind != "one_label":
            return {}
        from kerasllm.metrics.labels import draw_confusion

        given = self.indicators([answer["label"] for answer in answers])
        return {"confusion": draw_confusion(self.indicators(references).T @ given, self.vocabulary.labels)}
