"""What a recipe can say of its records: `cleaning`, `tokenizer`, `batching`, `augmentation`. No TensorFlow."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kerasllm.settings import Settings


class CleaningSettings(Settings):
    """How texts are normalised and which training records are dropped."""

    normalize_unicode: Literal["NFC", "NFKC", "none"] = "NFC"
    collapse_spaces: bool = True
    """Any run of white space becomes one space, none stays at the ends. Documents keep the ends of their lines."""
    min_characters: int = Field(default=1, ge=1)
    """Shortest text of a field, in characters."""
    max_characters: int = Field(default=2000, ge=1)
    """Longest text of a field, in characters. Documents may have any length."""
    max_length_ratio: float | None = Field(default=9.0, ge=1)
    """Longest by shortest of the texts of a record that say the same, such as source and target of a translation, in
    characters; null keeps every ratio."""
    drop_duplicates: bool = True
    drop_leaks: bool = True
    """Drop training records that also stand in validation or test."""
    max_records_per_label: int | None = Field(default=None, ge=1)
    """Few-shot: so many training records of each label, for a task with labels; a record with several counts for the
    whole list of them. null keeps all."""
    choice_seed: int = Field(default=0, ge=0)
    """Which ones these are follows from it and from their texts; apart from the seed of the training."""

    @model_validator(mode="after")
    def _check_bounds(self) -> "CleaningSettings":
        if self.min_characters > self.max_characters:
            raise ValueError(f"min_characters {self.min_characters} exceeds max_characters {self.max_characters}")
        return self


class TokenizerSettings(Settings):
    """How text becomes token ids. The vocabulary is learnt by `prepare` from the training split, or a published one."""

    kind: Literal["subwords", "words", "characters", "wordpiece"] = "subwords"
    """`wordpiece` is what BERT reads: it normalises texts by itself, whatever `cleaning` says."""
    vocabulary: str | None = None
    """For wordpiece only: a file with one token a line, or a directory in the layout of Hugging Face (both relative to
    the data directory), `hf:OWNER/NAME` or `preset:NAME`; null learns it. All but the file say by themselves whether to
    lower case, strip accents and split Chinese."""
    run: str | None = None
    """A run (relative to the data directory, or to the working directory) whose tokenizer of the same kind is taken as
    it is, with the way it normalises; all other keys are without effect then."""
    max_vocabulary_size: int = Field(default=8000, ge=8)
    """Number of ids, the special tokens included, if the vocabulary is learnt; a small corpus may give fewer."""
    model: Literal["unigram", "bpe"] = "unigram"
    """The SentencePiece algorithm; for subwords only."""
    character_coverage: float = Field(default=1.0, gt=0.9, le=1.0)
    """Share of the characters in the corpus that subwords must cover; for subwords only."""
    lowercase: bool = False
    strip_accents: bool | None = None
    """Leave accents out; null: if texts are turned to lower case. For wordpiece only."""
    split_chinese: bool = True
    """Make each Chinese character a word. For wordpiece only."""
    max_training_sentences: int = Field(default=1_000_000, ge=1)
    """Texts that the vocabulary is learnt from, spread evenly over the corpus; bounds the memory of `prepare`."""

    @model_validator(mode="after")
    def _check_subword_options(self) -> "TokenizerSettings":
        keys = {"model": "subwords", "character_coverage": "subwords"}
        keys |= dict.fromkeys(("vocabulary", "strip_accents", "split_chinese"), "wordpiece")
        for key, kind in keys.items():
            # Compared with the default, because the recipe that a run keeps has every default written out.
            if self.kind != kind and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"'{key}' is for kind: {kind} only")
        if self.vocabulary is not None and self.run is not None:
            raise ValueError("give either vocabulary or run")
        return self


class BatchingSettings(Settings):
    """How examples are put together into batches: by a budget of tokens, or so many of them whatever their length."""

    tokens_per_batch: int | None = Field(default=None, ge=1)
    """Positions of the global batch, padding included: examples times the longest sequence of any feature; 4096 where
    `global_batch_size` is not given either."""
    global_batch_size: int | None = Field(default=None, ge=1)
    """Examples of the global batch, drawn at random; the last batch of an epoch takes what is left."""
    max_sequence_length: int = Field(default=256, ge=2)
    """In tokens, special tokens included; longer examples are left out of training and counted."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = [key for key in ("tokens_per_batch", "global_batch_size") if values.get(key) is not None]
        return values if given else {**values, "tokens_per_batch": 4096}

    @model_validator(mode="after")
    def _check_budget(self) -> "BatchingSettings":
        if self.tokens_per_batch is None:
            return self
        if self.global_batch_size is not None:
            raise ValueError("give either tokens_per_batch or global_batch_size")
        if self.max_sequence_length > self.tokens_per_batch:
            raise ValueError(
                f"max_sequence_length {self.max_sequence_length} exceeds tokens_per_batch {self.tokens_per_batch}"
            )
        return self


class TokenDropoutSettings(Settings):
    """Tokens that the model reads, in sequences that it does not have to write, become the unknown token."""

    name: Literal["token_dropout"]
    rate: float = Field(gt=0, lt=1)
    """Probability of each token; special tokens and padding stay."""


class FlipSettings(Settings):
    """Left and right are exchanged in half of the pictures."""

    name: Literal["flip"]


class ShiftSettings(Settings):
    """Pictures move up or down, and left or right."""

    name: Literal["shift"]
    pixels: int = Field(ge=1)
    """Greatest way in each direction."""
    padding: Literal["zeros", "reflect"] = "zeros"
    """What comes in: 0, or the picture mirrored at its outermost pixels."""


class CutoutSettings(Settings):
    """A square of each picture becomes 0."""

    name: Literal["cutout"]
    size: int = Field(ge=1)
    """Side of the square, in pixels; its centre is any pixel, so that part of it may lie outside."""


class ColorJitterSettings(Settings):
    """Brightness, contrast and saturation of each picture are multiplied by factors from 1 - s to 1 + s."""

    name: Literal["color_jitter"]
    brightness: float = Field(default=0.2, ge=0, le=1)
    """s; 0 leaves it."""
    contrast: float = Field(default=0.2, ge=0, le=1)
    saturation: float = Field(default=0.2, ge=0, le=1)


class RotationSettings(Settings):
    """Pictures are turned."""

    name: Literal["rotation"]
    degrees: float = Field(default=15.0, gt=0, le=180)
    """At most, to either side; what comes in is 0."""


class ResizedCropSettings(Settings):
    """A part of each picture, of random size, shape and place, is taken for the whole."""

    name: Literal["resized_crop"]
    least_area: float = Field(default=0.2, gt=0, le=1)
    """Share of the area."""


class GreySettings(Settings):
    """Some pictures lose their colours."""

    name: Literal["grey"]
    rate: float = Field(default=0.2, gt=0, le=1)
    """The share of them."""


class RandAugmentSettings(Settings):
    """Some of fourteen changes are drawn for each picture: moved, turned, sheared, other colours and contrasts."""

    name: Literal["rand_augment"]
    num_changes: int = Field(default=2, ge=1)
    """One after the other."""
    magnitude: float = Field(default=0.3, ge=0, le=1)
    """Of each, 1 being the greatest; the paper's magnitudes go up to 30, so that its 9 is 0.3."""


class MixUpSettings(Settings):
    """Each picture becomes a weighted mean of itself and another one, and so do its labels."""

    name: Literal["mixup"]
    alpha: float = Field(default=0.2, gt=0)
    """Of the beta distribution of the weights: near 0 most stay what they are, at 1 all weights are as likely."""


class CutMixSettings(Settings):
    """A rectangle of each picture is that of another one, and labels count by their areas."""

    name: Literal["cutmix"]
    alpha: float = Field(default=1.0, gt=0)
    """As for `mixup`, of the areas."""


AugmentationSettings = Annotated[
    TokenDropoutSettings
    | FlipSettings
    | ShiftSettings
    | CutoutSettings
    | ColorJitterSettings
    | RotationSettings
    | ResizedCropSettings
    | GreySettings
    | RandAugmentSettings
    | MixUpSettings
    | CutMixSettings,
    Field(discriminator="name"),
]
