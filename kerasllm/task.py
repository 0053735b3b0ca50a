"""What every task is made of. A task is a file in `tasks/`, found by its name, whose class fills this in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kerasllm.errors import UserError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf
    from matplotlib.figure import Figure

    from kerasllm.data.batching import Corruption
    from kerasllm.data.store import Examples
    from kerasllm.data.vocabulary import Vocabulary


# Nothing, only spaces, foreign scripts, control characters, far too much.
ODD_TEXTS = (
    "",
    "   ",
    "Straße – naïve № ½",
    "日本語とالعربية",
    "e\u0301 👩‍👧 \u200b\ufeff\u2028",
    "a\tb\nc\x00d",
    "all " * 600,
)


class Task:
    """Where data meets model: the fields of a record, the features made of them, the model, its loss, its answers.

    Args:
        recipe: with the sections that the task names.
        vocabulary: tokenizer and labels, as `prepare` learnt them.
    """

    fields: tuple[str, ...]
    """What each record must have."""
    optional_fields: tuple[str, ...] = ()
    """What a recipe may name besides."""
    inputs: dict[str, str]
    """What an answer is made from: argument of `answer` and of the endpoint -> field of a record."""
    reference: str | None
    """The field that an answer is measured against; None where there is no right answer."""
    label_field: str | None = None
    """The field that holds names of labels, which `prepare` numbers; None for a task without such labels."""
    text_fields: tuple[str, ...] = ()
    """The fields whose texts the tokenizer learns; without one there is no tokenizer."""
    augmented_inputs: Mapping[str, Any] = MappingProxyType({})
    """What augmentation may change: feature -> `tokens`, or the height, width and channels of pictures."""
    mixes_labels: bool = False
    """Whether an example may have the labels of two, each counting for a share."""
    metric_names: tuple[str, ...]
    """What `metrics` gives. The loss is measured for every task, and where it is named here the perplexity."""
    counted: str = "tokens"
    """What the weights of `loss` count, and speed and evaluations are said in."""
    sections: dict[str, Any]
    """What a recipe says of the task: name of a section -> its settings, or a union of such, the default first."""

    unvaried_outputs: tuple[str, ...] = ()
    """Outputs of `answer` that are the same for every record, and are left out where the predictions are written."""
    parallel_fields: tuple[str, ...] = ()
    """The fields whose texts say the same, so that cleaning compares their lengths."""
    document_fields: tuple[str, ...] = ()
    """The fields whose texts are documents: cleaning keeps the ends of their lines, and lets them have any length."""
    needs_mask: bool = False
    """Whether the tokenizer must have a token that stands for a hidden one; only some kinds can have it."""

    verbatim_fields: tuple[str, ...] = ()
    """The fields that cleaning leaves as they are, however long, because places in them are counted."""

    encodes_as_graph: bool = False
    """Whether `encode` consists of graph operations alone: it is then traced once, and several times as fast."""

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        self.recipe, self.vocabulary = recipe, vocabulary
        self.tokenizer = vocabulary.tokenizer
        self.model: keras.Model | None = None

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """What `labels_in` and `encode` read of a recipe besides its data, cleaning and tokenizer, as plain values."""
        return {}

    @classmethod
    def metric_names_of(cls, recipe: Any) -> tuple[str, ...]:
        """Those of `metric_names` that a recipe gives; by default all."""
        return cls.metric_names

    @classmethod
    def fault_of(cls, record: dict[str, str]) -> str | None:
        """Why nothing can be learnt from a cleaned record, as one of `cleaning.REASONS`; by default None.

        Raises:
            UserError: a field cannot be read; says what it must be.
        """
        return None

    @classmethod
    def labels_in(cls, recipe: Any, text: str) -> list[str]:
        """The names of the labels in the label field of a record; by default the whole text is one.

        Raises:
            UserError: the text is none that this recipe can learn from; says what it must be.
        """
        return [text]

    @classmethod
    def read_record(cls, recipe: Any, record: dict[str, str]) -> dict[str, str]:
        """A record of the source -> what is cleaned, stored and learnt from; by default as it is.

        Raises:
            UserError: it holds what the recipe does not foresee; says what.
        """
        return record

    @classmethod
    def check_record(cls, recipe: Any, record: dict[str, str]) -> None:
        """Looks at a record as cleaning leaves it, all fields together; by default every record is sound.

        Raises:
            UserError: nothing can be learnt from it; says why.
        """

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Texts by field, string [B] -> numbers by feature, int32 or float32 [B, None].

        A task that cuts long texts gives a feature `num_cut_tokens` int32 [B, 1], which is counted. One that makes
        several examples of a record, or none, gives all features N rows, and a feature `record` int32 [N, 1] with the
        number in [0, B) of the record that each is made of.
        """
        raise NotImplementedError

    def corruption(self) -> Corruption | None:
        """What is done to every example when a batch is made of it, in training and in evaluation; by default nothing.

        The features that it adds are in the batches that `forward` and `loss` get, and in no file.
        """
        return None

    def build_model(self) -> keras.Model:
        """Makes `self.model`, of the recipe's numbers and the vocabulary, and returns it."""
        raise NotImplementedError

    def begin(self, examples: Examples) -> None:
        """Gives `self.model`, which is new, what of its first values follows from the training examples; by default
        nothing. Pretrained weights come after it."""

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The logits of a batch; features are padded with 0 to [B, T]."""
        raise NotImplementedError

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Losses of each position in nats, not reduced, and their weights, of the same shape, 0 at padding."""
        raise NotImplementedError

    def answer(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """The answers to texts, as graph operations that are exported.

        Args:
            texts: string [B], one for each of `inputs` in their order.

        Returns:
            Outputs by name, each with B as its first dimension. The first one is what is shown and measured.
        """
        raise NotImplementedError

    def further_endpoints(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
        """What an exported model can be asked besides `answer`: functions of the same inputs, by the names of their
        endpoints; by default none."""
        return {}

    def asked_in_evaluation(self) -> Any:
        """What answers a split when it is measured, with `inputs`, `questions` and `answer` as a task has; by default
        the task."""
        return self

    def questions(self, texts: Mapping[str, Sequence[str]]) -> tuple[list[list[str]], list[str]]:
        """What is asked in an evaluation: by default the inputs of every record.

        Args:
            texts: of a split, by field.

        Returns:
            For each of `inputs` its texts; and what the answers are measured against, none without `reference`.
        """
        references = [] if self.reference is None else list(texts[self.reference])
        return [list(texts[field]) for field in self.inputs.values()], references

    def shown_questions(self, texts: Mapping[str, Sequence[str]]) -> list[list[str]]:
        """What stands for the inputs of `questions` where answers are written down; by default they do themselves."""
        return self.questions(texts)[0]

    def read_input(self, argument: str) -> str | bytes:
        """What is answered for an argument that a person has typed; by default the text itself."""
        return argument

    def odd_inputs(self) -> Sequence[str | bytes]:
        """What people send by mistake or malice; an exported model must answer it as this process does."""
        return ODD_TEXTS

    def sums(self, logits: Any, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Figures of a batch to be added up over a split, float32 scalars by name, for what no answer shows.

        Args:
            logits: from `forward`, without dropout.
        """
        return {}

    def metrics_of_sums(self, sums: dict[str, float]) -> dict[str, Any]:
        """Metrics of `metric_names` from what `sums` has given for all batches together."""
        return {}

    def published_form(self) -> tuple[str, dict[str, keras.layers.Layer], tuple[str, ...]]:
        """What Hugging Face calls the model: its architecture, its heads by their name there, and its labels.

        Raises:
            UserError: it has no name for it.
        """
        raise UserError(f"{self.recipe.task}: Hugging Face has no architecture for it; export it as a SavedModel")

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """How good answers are.

        Args:
            answers: for each record the outputs by name of what was `asked_in_evaluation`, as plain values.
            references: what stands in the field `reference`.

        Returns:
            A value for each of `metric_names` but the perplexity and those of sums; there may be others. A table is a
            dict of rows by name, each a dict of cells by column.
        """
        raise NotImplementedError

    def baseline(
        self, training: Mapping[str, Iterable[str]], columns: Sequence[Sequence[str]], references: list[str]
    ) -> dict[str, Any]:
        """Figures of a simple way to answer, to be seen beside those of the model; by default none.

        Args:
            training: the texts of the training split by field.
            columns: for each of `inputs` the texts of the split that is measured.
            references: as for `metrics`.
        """
        return {}

    def pictures(
        self, answers: list[dict[str, Any]], references: list[str], columns: Sequence[Sequence[Any]]
    ) -> dict[str, Figure]:
        """What is better seen than said of the answers, as figures by name; by default none.

        Args:
            answers, references: as for `metrics`.
            columns: for each of `inputs` what was asked.
        """
        return {}


def max_length_of(recipe: Any) -> int:
    """The tokens that fit into both a batch and the model of a recipe, special ones included."""
    return min(recipe.batching.max_sequence_length, recipe.model.max_sequence_length)


def check_max_length(recipe: Any, needed: int) -> None:
    """Raise `UserError` where fewer than `needed` tokens fit."""
    if (found := max_length_of(recipe)) < needed:
        raise UserError(
            f"{recipe.place('model', 'max_sequence_length')}: {found} tokens, those of a batch "
            f"(batching.max_sequence_length) or of the model, are too few; {needed} are needed"
        )


def refuse_r_drop(recipe: Any, reason: str) -> None:
    """Raises UserError, with the reason, if the objective of a recipe is R-Drop."""
    if innermost(recipe.training.objective).name == "r_drop":
        raise UserError(f"{recipe.place('training', 'objective')}: r_drop {reason}; use supervised")


def innermost(objective: Any) -> Any:
    """The settings of the objective that all the others of these stand around; None for None."""
    while hasattr(objective, "around"):
        objective = objective.around
    return objective
