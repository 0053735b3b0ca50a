"""The timelines that kerasllm/README.md shows are ones that a recipe can have, and do what is said there."""

import re
from pathlib import Path

import keras
import pytest

import kerasllm
from kerasllm.layers.normalization import gated_normalization
from kerasllm.models.conv_net import ConvNet
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.recipe import load_recipe
from kerasllm.training.normalization_gates import build_gates, gated_layers
from kerasllm.training.schedules import build_schedule
from kerasllm.training.ticks import Timeline, TimelineSchedule, resolve_ticks

PAGE = (Path(kerasllm.__file__).parent / "README.md").read_text("utf-8")
SECTION = PAGE.partition("\n## Ticks\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
OF_PICTURES = """\
task: classify_image
data: {source: built_in, name: digits, train: 300, validation: 20}
picture: {height: 8, width: 8, channels: 1}
training: {train_epochs: 5}
"""
OF_SENTENCES = """\
task: translate
data: {source: built_in, name: dates, train: 300, validation: 20}
model: {num_layers: 6, num_heads: 2, hidden_dim: 8, intermediate_dim: 8}
training: {train_epochs: 5}
"""
EPOCH, TOTAL = 1000, 5000


@pytest.fixture
def timeline_of(tmp_path):
    """Resolves the ticks of an example for a run of 5 epochs, and checks all that is checked before the first step."""

    def timeline_of(example):
        pictures = "picture_scale" in example
        (tmp_path / "r.yaml").write_text((OF_PICTURES if pictures else OF_SENTENCES) + example)
        recipe = load_recipe(tmp_path / "r.yaml")
        places = [recipe.place("ticks", index) for index in range(len(recipe.ticks))]
        ticks = resolve_ticks(recipe.ticks, places, range(0, TOTAL + 1, EPOCH), TOTAL)
        keras.utils.set_random_seed(1)
        with gated_normalization(gated_layers(recipe.ticks)):
            model = ConvNet(8, 8, 1, 10) if pictures else EncoderDecoder(10, **recipe.model.model_dump())
        TimelineSchedule(build_schedule(recipe.training.schedule, 1.0, TOTAL), ticks, TOTAL)
        return Timeline(model, ticks), build_gates(model, ticks, TOTAL)

    return timeline_of


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_each_example_is_a_timeline(timeline_of, index):
    timeline, _ = timeline_of(EXAMPLES[index])
    assert timeline.rows()


def test_gradual_unfreezing_goes_from_the_last_layer_to_everything(timeline_of):
    (example,) = (each for each in EXAMPLES if "decoder_layer_[0-4]" in each)
    timeline, _ = timeline_of(example)
    trained = [timeline.trainable_parameters(step) for step in range(0, TOTAL, EPOCH)]
    assert trained[0] < trained[1] < trained[2] < trained[3] == trained[4]
    assert not timeline.frozen(TOTAL)
    assert {path.split("/")[0] for path in timeline.matching("", "") - timeline.frozen(0)} == {
        "decoder_layer_5",
        "decoder_norm",
    }


def test_the_gate_of_the_example_is_of_the_encoder(timeline_of):
    (example,) = (each for each in EXAMPLES if "open_normalization" in each)
    _, gates = timeline_of(example)
    assert len(gates) == 12
    assert all(gate.variable.path.startswith("encoder_layer_") for gate in gates)
