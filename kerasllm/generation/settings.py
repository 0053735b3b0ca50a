"""What a recipe can say in its section `generation`. Loads no TensorFlow."""

from pydantic import Field

from kerasllm.settings import Settings


class GenerationSettings(Settings):
    """How an answer is searched for."""

    beam_size: int = Field(default=5, ge=1, le=64)
    """Hypotheses kept at each step; 1 is greedy search."""
    length_penalty: float = Field(default=0.6, ge=0)
    """Alpha: scores are divided by ((5 + length) / 6) ** alpha; 0 compares plain log-probabilities."""
    max_length_ratio: float = Field(default=1.5, gt=0)
    """Longest answer in tokens = ratio * source tokens + max_extra_tokens, never more than the model's positions."""
    max_extra_tokens: int = Field(default=20, ge=0)
