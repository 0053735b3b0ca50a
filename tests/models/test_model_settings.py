"""Impossible sizes are refused before any model is built."""

import pydantic
import pytest

from kerasllm.models.settings import EncoderDecoderSettings


def test_heads_must_divide_the_width():
    with pytest.raises(pydantic.ValidationError, match="num_heads 3 does not divide hidden_dim 128"):
        EncoderDecoderSettings(num_heads=3, hidden_dim=128)


def test_sines_and_cosines_need_an_even_width():
    with pytest.raises(pydantic.ValidationError, match="hidden_dim 3 must be even for sinusoidal positions"):
        EncoderDecoderSettings(num_heads=1, hidden_dim=3)
    assert EncoderDecoderSettings(num_heads=1, hidden_dim=3, positions="learned").hidden_dim == 3
