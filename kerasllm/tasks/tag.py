"""Entities in a text: each of its words gets a tag, and tags of words that go together make an entity.

record      {"words": "EU rejects German call", "tags": "B-ORG O B-MISC O"}     single spaces; tags are BIO
features    token_ids       [START EU reject ##s German call END]
            labels          [0 1 7 0 2 7 0]         tags counted from 1, at the first token of each word; 0 is no word
            num_cut_tokens  [0]                     what did not fit into the model
answer      {"entities": "EU/ORG | German/MISC", "tags": ["B-ORG", "O", "B-MISC", "O"],
            "word_texts": ["EU", "rejects", "German", "call"], "entity_texts": ["EU", "German"],
            "entity_types": ["ORG", "MISC"], "entity_starts": [0, 11], "entity_ends": [2, 17],
            "entity_scores": [0.98, 0.95]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kerasllm.data.tag_schemes import OUTSIDE, allowed_by_bio, split_tag, to_bio
from kerasllm.errors import UserError
from kerasllm.models.settings import PretrainedBertSettings
from kerasllm.settings import Settings
from kerasllm.task import Task, check_max_length, innermost, max_length_of

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from kerasllm.data.vocabulary import Vocabulary

CAPITAL = r"\p{Lu}.*"
SEPARATOR = " | "
"""Between the entities of the readable answer."""


class TaggingSettings(Settings):
    """How the tags of a sentence are chosen."""

    decoder: Literal["softmax", "crf"] = "softmax"
    """Each tag by itself; or all of a sentence together, by a conditional random field over its words, so that no I-
    stands where BIO forbids it. Its 'crf/' variables begin at 0: `training.optimizer.patterns` can give them a rate."""
    capitals: bool = False
    """Words that begin with a capital stand in the encoder's second segment, so that one for texts in lower case sees
    what its tokenizer takes away ([Collobert et al., 2011](https://arxiv.org/abs/1103.0398), section 6.1)."""


class TokenizedWords(NamedTuple):
    """Words as the model reads them."""

    token_ids: tf.RaggedTensor
    """int32 [B, T], with START and END."""
    words: tf.RaggedTensor
    """int32 [B, T]: at the first token of each word its number from 1, counted over all texts; else 0."""
    segments: dict[str, tf.RaggedTensor]
    """`segment_ids` int32 [B, T], where the recipe wants capitals to be seen: 1 in words that begin with one."""
    num_cut: tf.Tensor
    """int32 [B]: tokens that did not fit."""


class FoundEntities(NamedTuple):
    """Which words are the first and the last of an entity, bool [B, N]; of E entities the types, string [E]."""

    begins: tf.RaggedTensor
    ends: tf.RaggedTensor
    types: tf.Tensor
    inside: tf.Tensor
    """bool [W]: which words are part of one."""

    def means_of(self, scores: tf.Tensor) -> tf.Tensor:
        """float32 [W], of each word -> float32 [E], the mean over the words of each entity."""
        import tensorflow as tf

        numbers = tf.cumsum(tf.cast(self.begins.flat_values, tf.int32)) - 1
        return tf.math.segment_mean(tf.boolean_mask(scores, self.inside), tf.boolean_mask(numbers, self.inside))


class Tag(Task):
    """Trains and asks a `Bert` with a head.

    Raises:
        UserError: there is no entity to learn, there are too few positions, or the training does not fit the decoder.
    """

    counted = "words"
    fields = ("words", "tags")
    inputs = {"text": "words"}
    reference = "tags"
    label_field = "tags"
    text_fields = ("words",)
    metric_names = ("f1", "precision", "recall", "accuracy")
    sections = {"model": PretrainedBertSettings, "tagging": TaggingSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        self.has_crf = recipe.tagging.decoder == "crf"
        self.max_length = self.encoding_settings(recipe)["max_sequence_length"]
        check_max_length(recipe, 3)  # START, END and a token
        if recipe.tagging.capitals and recipe.model.num_segments < 2:
            place = recipe.place("tagging", "capitals")
            raise UserError(f"{place}: needs a second segment; model.num_segments is {recipe.model.num_segments}")
        if set(vocabulary.labels) == {OUTSIDE}:
            raise UserError("data.train: has no other tag than 'O'; there must be entities to learn")
        if self.has_crf:
            check_training_of_crf(recipe)

    @classmethod
    def encoding_settings(cls, recipe: Any) -> dict[str, Any]:
        """The tokens that fit into both a batch and the model, special ones included; and what is seen of words."""
        return {"max_sequence_length": max_length_of(recipe), "capitals": recipe.tagging.capitals}

    @classmethod
    def labels_in(cls, recipe: Any, text: str) -> list[str]:
        """The tags of a record, with `O` and the I- of each of its types, so that the model knows these in any case."""
        tags = text.split()
        return [OUTSIDE, *tags, *(f"I-{split_tag(tag)[1]}" for tag in tags if tag != OUTSIDE)]

    @classmethod
    def check_record(cls, recipe: Any, record: dict[str, str]) -> None:
        """A record must have as many tags as words, and they must be BIO.

        Raises:
            UserError: it has not.
        """
        words, tags = record["words"].split(" "), record["tags"].split()
        if words != record["words"].split():
            raise UserError("more than a space between two words; leave cleaning.collapse_spaces as it is")
        if len(words) != len(tags):
            raise UserError(
                f"{len(words)} words, but {len(tags)} tags ({record['words'][:60]!r}); a word holds no white space, "
                "also none that cleaning.normalize_unicode makes of its characters"
            )
        to_bio(tags, "bio")

    def encode(self, texts: dict[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        """Texts by field, string [B] -> the features that the file's head lists, int32."""
        import tensorflow as tf

        tokens = self.tokenize(tf.strings.split(texts["words"]))
        tags = self.vocabulary.number_labels(tf.strings.split(texts["tags"]).flat_values) + 1
        labels = tf.gather(tf.concat([[0], tags], axis=0), tokens.words.flat_values)
        return {
            "token_ids": tokens.token_ids,
            **tokens.segments,
            "labels": tokens.words.with_flat_values(labels),
            "num_cut_tokens": tf.RaggedTensor.from_tensor(tokens.num_cut[:, None]),
        }

    def tokenize(self, words: tf.RaggedTensor) -> TokenizedWords:
        """Words, string [B, N], each tokenized by itself; one without any token leaves no trace."""
        import tensorflow as tf

        pieces = self.tokenizer.tokenize(words.flat_values)  # [W, None]
        word_of = pieces.value_rowids()  # each piece
        is_first = tf.range(tf.size(word_of, tf.int64)) == tf.gather(pieces.row_starts(), word_of)
        numbers = tf.where(is_first, tf.cast(word_of, tf.int32) + 1, 0)
        row_splits, room = tf.gather(pieces.row_splits, words.row_splits), self.max_length - 2

        def between(values: tf.Tensor, start: int = 0, end: int = 0) -> tf.RaggedTensor:
            """Values of all tokens -> [B, T], with those of START and END."""
            first, last = (tf.fill([words.nrows(), 1], each) for each in (start, end))
            return tf.concat([first, tf.RaggedTensor.from_row_splits(values, row_splits)[:, :room], last], axis=1)

        segments = {}
        if self.recipe.tagging.capitals:
            is_capital = tf.strings.regex_full_match(words.flat_values, CAPITAL)
            segments["segment_ids"] = between(tf.cast(tf.gather(is_capital, word_of), tf.int32))
        return TokenizedWords(
            between(pieces.flat_values, self.tokenizer.start_id, self.tokenizer.end_id),
            between(numbers),
            segments,
            tf.cast(tf.maximum(row_splits[1:] - row_splits[:-1] - room, 0), tf.int32),
        )

    def build_model(self) -> keras.Model:
        """The model that this task trains and asks, with the layer `head`, and `crf` if the recipe wants one."""
        from kerasllm.layers.crf import LinearChainCrf
        from kerasllm.layers.heads import ClassificationHead
        from kerasllm.models.bert import Bert

        settings, labels = self.recipe.model, self.vocabulary.labels
        self.model = Bert(self.tokenizer.vocabulary_size, **settings.numbers)
        self.model.pooler.trainable = False  # nothing here goes through it
        self.model.head = ClassificationHead(
            len(labels), settings.hidden_dim, settings.dropout, settings.initializer_stddev, name="head"
        )
        if self.has_crf:
            self.model.crf = LinearChainCrf(*allowed_by_bio(labels), name="crf")
        return self.model

    def forward(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """How much each token speaks for each tag.

        Args:
            batch: with `token_ids`, and for capitals `segment_ids`, [B, T].

        Returns:
            Logits [B, T, C]; for a conditional random field its emissions.
        """
        inputs = {name: batch[name] for name in ("token_ids", "segment_ids") if name in batch}
        hidden = model(inputs, training=training)  # [B, T, D]
        return model.head(hidden, training=training)

    def loss(
        self, logits: tf.Tensor, batch: dict[str, tf.Tensor], label_smoothing: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each tag; with a conditional random field that of all tags of a sentence, by word.

        Args:
            logits: [B, T, C], from `forward`.
            batch: with `labels` [B, T], 0 where no word begins.
            label_smoothing: in [0, 1); 0 with a conditional random field.

        Returns:
            Losses in nats per word, and their weights in words: [B, T], or [B, 1] for whole sentences.
        """
        import tensorflow as tf

        labels = batch["labels"]
        if not self.has_crf:
            from kerasllm.training.objectives import cross_entropy

            losses = cross_entropy(logits, tf.maximum(labels - 1, 0), label_smoothing)
            return losses, tf.cast(labels != 0, losses.dtype)
        places, lengths = first_tokens(labels != 0)
        emissions, labels = (tf.gather(each, places, batch_dims=1) for each in (logits, labels))
        losses = -self.model.crf.log_likelihood(emissions, tf.maximum(labels - 1, 0), lengths)  # [B]
        weights = tf.cast(lengths, losses.dtype)
        return (losses / tf.maximum(weights, 1.0))[:, None], weights[:, None]

    def decode(self, logits: tf.Tensor, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The tags of the words of which the model has read a token.

        Args:
            logits: [B, T, C], from `forward`.
            words: int32 [B, T], as in `TokenizedWords`.

        Returns:
            Numbers of tags and their probabilities, int32 [W] and float32 [W], text by text.
        """
        import tensorflow as tf

        places, lengths = first_tokens(words != 0)
        logits = tf.gather(logits, places, batch_dims=1)  # [B, M, C]
        if self.has_crf:
            tags, probabilities = self.model.crf.decode(logits, lengths), self.model.crf.marginals(logits, lengths)
        else:
            tags, probabilities = tf.argmax(logits, axis=-1, output_type=tf.int32), tf.nn.softmax(logits)
        chosen = tf.gather(probabilities, tags, batch_dims=2)
        is_word = tf.sequence_mask(lengths, tf.shape(places)[1])
        return tf.boolean_mask(tags, is_word), tf.boolean_mask(chosen, is_word)

    def answer(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """The entities of texts, as graph operations from strings.

        Words are found as `data/words.py` says: punctuation at their ends is split off, and those of a text with TAB,
        and no other white space, between them are taken as they are. What does not fit into the model, and what has no
        token, is `O`.

        Args:
            texts: string [B].

        Returns:
            `entities` string [B], `TEXT/TYPE` with ` | ` between them; `tags` and `word_texts` string [B, N]; of E
            entities `entity_texts` and `entity_types` string [B, E], `entity_starts` and `entity_ends` int32 [B, E],
            characters of the text (Unicode code points) from 0, the end being the one after the last, and
            `entity_scores` float32 [B, E]: the mean over the words of the probability of the tag, with a conditional
            random field its marginal over all sequences that BIO allows. Rows are filled up with "", -1 and 0.
        """
        import tensorflow as tf

        from kerasllm.data.words import cut_out, find_words

        words = find_words(texts)
        tokens = self.tokenize(words.texts)
        batch = {"token_ids": tokens.token_ids, **tokens.segments}
        batch = {name: rows.to_tensor() for name, rows in batch.items()}
        logits = self.forward(self.model, batch, training=False)
        tags, probabilities = self.decode(logits, tokens.words.to_tensor())
        numbers = tokens.words.flat_values
        read = tf.boolean_mask(numbers, numbers > 0)[:, None] - 1  # [R, 1]
        outside = tf.fill([tf.size(words.starts.flat_values)], self.vocabulary.labels.index(OUTSIDE))  # [W]
        tags = words.starts.with_flat_values(tf.tensor_scatter_nd_update(outside, read, tags))
        scores = tf.scatter_nd(read, probabilities, tf.shape(outside))
        entities = self.find_entities(tags)
        starts = tf.ragged.boolean_mask(words.starts, entities.begins)
        ends = tf.ragged.boolean_mask(words.ends, entities.ends)
        entity_texts = cut_out(texts, starts, ends)
        shown = tf.strings.regex_replace(entity_texts.flat_values, r"\s+", " ") + "/" + entities.types
        return {
            "entities": tf.strings.reduce_join(starts.with_flat_values(shown), axis=1, separator=SEPARATOR),
            "tags": tags.with_flat_values(self.vocabulary.name_labels(tags.flat_values)).to_tensor(),
            "word_texts": words.texts.to_tensor(),
            "entity_texts": entity_texts.to_tensor(),
            "entity_types": starts.with_flat_values(entities.types).to_tensor(),
            "entity_starts": starts.to_tensor(-1),
            "entity_ends": ends.to_tensor(-1),
            "entity_scores": starts.with_flat_values(entities.means_of(scores)).to_tensor(),
        }

    def find_entities(self, tags: tf.RaggedTensor) -> FoundEntities:
        """Numbers of tags, int32 [B, N] -> the entities that they make, as `metrics.entities.entities_of` has them."""
        import tensorflow as tf

        parts = [split_tag(label) for label in self.vocabulary.labels]
        names = tf.constant([type_ for _, type_ in parts])
        types = tf.gather(names, tags.flat_values)  # "" at O
        is_b = tf.gather(tf.constant([prefix == "B" for prefix, _ in parts]), tags.flat_values)
        rows = tags.value_rowids()
        goes_on = (types[1:] == types[:-1]) & (rows[1:] == rows[:-1]) & ~is_b[1:]  # [W - 1]
        first = tf.concat([[True], ~goes_on], axis=0)[: tf.size(rows)]
        last = tf.concat([~goes_on, [True]], axis=0)[: tf.size(rows)]
        inside = types != ""
        begins, ends = (tags.with_flat_values(each & inside) for each in (first, last))
        return FoundEntities(begins, ends, tf.boolean_mask(types, begins.flat_values), inside)

    def published_form(self) -> tuple[str, dict[str, keras.layers.Layer], tuple[str, ...]]:
        """A token classifier.

        Raises:
            UserError: it has a conditional random field, or sees capitals.
        """
        if self.has_crf:
            raise UserError(
                "tagging.decoder: Hugging Face's BertForTokenClassification has no crf; export it as a SavedModel"
            )
        if self.recipe.tagging.capitals:
            raise UserError(
                "tagging.capitals: Hugging Face's BertForTokenClassification reads all words in one segment; export it "
                "as a SavedModel"
            )
        return "BertForTokenClassification", {"classifier": self.model.head}, self.vocabulary.labels

    def questions(self, texts: Mapping[str, Sequence[str]]) -> tuple[list[list[str]], list[str]]:
        """The words of records, with TAB after each: it gets its tag, whatever punctuation it has; and their tags."""
        asked = ["".join(f"{word}\t" for word in text.split()) for text in texts["words"]]
        return [asked], list(texts["tags"])

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """How good answers to the words of records are.

        Returns:
            `f1`, `precision` and `recall` of entities over all records, `accuracy` of tags, 0 to 1, and the table
            `per_type`; see `metrics/entities.py`.
        """
        from kerasllm.metrics.entities import entity_metrics

        return entity_metrics([text.split() for text in references], [list(filter(None, a["tags"])) for a in answers])


def first_tokens(is_first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the first tokens of words stand, bool [B, T] -> places int32 [B, M], and how many, int32 [B].

    M is the greatest number of words of a text, and 1 at least; what comes after a text's own are other places.
    """
    import tensorflow as tf

    lengths = tf.reduce_sum(tf.cast(is_first, tf.int32), axis=1)
    order = tf.argsort(tf.cast(~is_first, tf.int32), axis=1, stable=True)
    return order[:, : tf.maximum(tf.reduce_max(lengths), 1)], lengths


def check_training_of_crf(recipe: Any) -> None:
    """Raise `UserError` for what a training may minimise only where each tag is chosen by itself."""
    places = [("training",), *(("ticks", index) for index in range(len(recipe.ticks)))]
    for keys, settings in zip(places, (recipe.training, *recipe.ticks), strict=True):
        if settings.label_smoothing:
            raise UserError(
                f"{recipe.place(*keys, 'label_smoothing')}: a crf has one right sequence of tags, nothing to smooth; "
                "leave it out, or take tagging.decoder: softmax"
            )
        objective = innermost(settings.objective)
        if objective is not None and objective.name == "r_drop":
            raise UserError(
                f"{recipe.place(*keys, 'objective')}: r_drop compares the probabilities of single tags, and a crf has "
                "those of sequences; use supervised, or tagging.decoder: softmax"
            )
