"""What each way of adapting trains, by path."""

import pytest

from kerasllm.errors import UserError
from kerasllm.tuning.settings import (
    FullSettings,
    LoraSettings,
    OnlySettings,
    PrefixSettings,
    TopLayersSettings,
)
from kerasllm.tuning.trained_variables import trained_variables

FRONT = ["embedding/table", "positions/table", "segments/table", "embedding_norm/scale", "embedding_norm/offset"]
BLOCKS = [
    [f"layer_{i}/{part}" for part in ("self_attention/output/kernel", "feed_forward/expand/bias")] for i in (0, 1)
]
POOLER, HEAD = ["pooler/kernel", "pooler/bias"], ["head/dense/kernel", "head/dense/bias"]
BERT = [*FRONT, *BLOCKS[0], *BLOCKS[1], *POOLER, *HEAD]
TRANSLATOR = ["embedding/table", "encoder_layer_0/a", "encoder_layer_1/a", "encoder_norm/scale"]
TRANSLATOR += ["decoder_layer_0/a", "decoder_layer_1/a", "decoder_norm/scale"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (FullSettings(), BERT),
        (TopLayersSettings(num_layers=0), [*POOLER, *HEAD]),
        (TopLayersSettings(num_layers=1), [*BLOCKS[1], *POOLER, *HEAD]),
        (TopLayersSettings(num_layers=2), [*BLOCKS[0], *BLOCKS[1], *POOLER, *HEAD]),
        (
            OnlySettings(variables="bias$|norm"),
            [FRONT[3], FRONT[4], BLOCKS[0][1], BLOCKS[1][1], POOLER[1], HEAD[1]],
        ),
        (LoraSettings(), [*POOLER, *HEAD]),
        (LoraSettings(train_pooler=False), HEAD),
        (PrefixSettings(train_pooler=True), [*POOLER, *HEAD]),
    ],
)
def test_of_a_bert(settings, expected):
    assert trained_variables(settings, BERT) == set(expected)


def test_the_last_blocks_of_two_stacks_are_those_that_come_last():
    found = trained_variables(TopLayersSettings(num_layers=3), TRANSLATOR)
    assert found == {"encoder_layer_1/a", "encoder_norm/scale", "decoder_layer_0/a", "decoder_layer_1/a",
                     "decoder_norm/scale"}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "paths", "message"),
    [
        (OnlySettings(variables="poler"), BERT, r"^variables: 'poler' matches no variable; the nearest are pooler"),
        (TopLayersSettings(num_layers=3), BERT, r"^num_layers: 3 is more than the 2 blocks of the model; lower it"),
        (TopLayersSettings(), ["dense/kernel"], r"^name: no variable of this model lies in a numbered block"),
    ],
)
def test_what_does_not_fit(settings, paths, message):
    with pytest.raises(UserError, match=message):
        trained_variables(settings, paths)
