"""Published weights against a forward pass in NumPy over their tensors, keras-hub and, where it is, transformers."""

import json

import huggingface_hub
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from kerasllm.data.published import SPECIAL_TOKENS, Vocabulary, read_vocabulary
from kerasllm.errors import UserError
from kerasllm.layers.heads import ClassificationHead, MaskedLanguageHead, SpanHead
from kerasllm.models.bert import Bert
from kerasllm.models.published.bert import published_of, read_published, write_huggingface
from kerasllm.models.published.config import has_pooler

WIDTH, WIDE, LAYERS, HEADS, TOKENS, POSITIONS = 8, 12, 2, 2, 11, 10
CONFIG = {
    "model_type": "bert",
    "vocab_size": TOKENS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDE,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
}
IDS = np.array([[2, 7, 9, 3, 4, 3], [2, 5, 3, 0, 0, 0]], "int32")
SEGMENTS = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]], "int32")
INPUTS = {"token_ids": tf.constant(IDS), "segment_ids": tf.constant(SEGMENTS)}
VOCABULARY = Vocabulary((*SPECIAL_TOKENS, *"abcdef"), strip_accents=False)


def dense_shapes(name, units, inputs):
    return {f"{name}.weight": (units, inputs), f"{name}.bias": (units,)}


def their_shapes():
    norm = dict.fromkeys(("weight", "bias"), (WIDTH,))
    shapes = {
        "embeddings.word_embeddings.weight": (TOKENS, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        **{f"embeddings.LayerNorm.{key}": shape for key, shape in norm.items()},
        **dense_shapes("pooler.dense", WIDTH, WIDTH),
    }
    for index in range(LAYERS):
        at = f"encoder.layer.{index}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= dense_shapes(f"{at}.attention.{part}", WIDTH, WIDTH)
        shapes |= dense_shapes(f"{at}.intermediate.dense", WIDE, WIDTH) | dense_shapes(
            f"{at}.output.dense", WIDTH, WIDE
        )
        shapes |= {f"{at}.{part}output.LayerNorm.{key}": norm[key] for part in ("attention.", "") for key in norm}
    return shapes


@pytest.fixture
def tensors():
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape).astype("float32") for name, shape in their_shapes().items()}


@pytest.fixture
def write(tmp_path):
    def write(tensors, config=CONFIG):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / "model.safetensors")
        return str(tmp_path)

    return write


def reference(tensors, ids=IDS, segments=SEGMENTS):
    """Hidden vectors [B, T, D] and pooled ones [B, D], with their names and their order of axes."""

    def dense(name, x):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name, x):
        deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        standard = (x - x.mean(-1, keepdims=True)) / deviation
        return standard * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def split(x):
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

    x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.token_type_embeddings.weight"][segments]
    x = norm("embeddings.LayerNorm", x + tensors["embeddings.position_embeddings.weight"][: ids.shape[1]])
    for index in range(LAYERS):
        at = f"encoder.layer.{index}"
        query, key, value = (split(dense(f"{at}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(WIDTH / HEADS) - 1e9 * (ids == 0)[:, None, None]
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (shares / shares.sum(-1, keepdims=True) @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(f"{at}.attention.output.LayerNorm", x + dense(f"{at}.attention.output.dense", attended))
        wide = dense(f"{at}.intermediate.dense", x)
        wide = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
        x = norm(f"{at}.output.LayerNorm", x + dense(f"{at}.output.dense", wide))
    return x, np.tanh(dense("pooler.dense", x[:, 0]))


@pytest.mark.parametrize(("prefix", "older"), [("", False), ("bert.", False), ("bert.", True), ("model.bert.", False)])
def test_hidden_vectors_are_those_of_the_published_weights(tensors, write, prefix, older):
    names = {name: prefix + name for name in tensors}
    if older:
        ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        names = {name: next((new[: -len(old)] + ends[old] for old in ends if new.endswith(old)), new)
                 for name, new in names.items()}  # fmt: skip
    published = read_published(write({names[name]: tensor for name, tensor in tensors.items()}))
    model = published.build()
    hidden = model(INPUTS)
    expected, pooled = reference(tensors)
    np.testing.assert_allclose(hidden, expected, atol=1e-4)
    np.testing.assert_allclose(model.pooled(hidden), pooled, atol=1e-4)
    assert published.settings.activation == "gelu_approximate"
    assert (model.settings.dropout, model.settings.attention_dropout) == (0.2, 0.3)
    assert published.build(dropout=0.0).settings.dropout == 0.0


def test_weights_that_do_not_fit_are_listed_and_nothing_is_set(tensors, write):
    tensors["encoder.layer.1.output.dense.weight"] = np.zeros((WIDE, WIDTH), "float32")
    tensors["encoder.layer.0.attention.self.key.bias"] = np.zeros(3, "float32")
    del tensors["embeddings.token_type_embeddings.weight"]
    published = read_published(write(tensors))
    model = Bert(TOKENS, **published.settings.model_dump())
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(UserError, match="3 weights do not fit the model\n") as raised:
        published.assign(model)
    lines = str(raised.value).splitlines()[1:]
    assert "  embeddings.token_type_embeddings.weight: the model has (2, 8), the source has nothing" in lines
    assert "  encoder.layer.1.output.dense.weight: the model has (8, 12), the source has (12, 8)" in lines
    assert any("self.key.bias" in line and line.endswith("the source has (8,) + (3,) + (8,)") for line in lines)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_a_source_without_a_pooler_leaves_it_as_it_is(tensors, write, capsys):
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    model = read_published(write(without)).build()
    np.testing.assert_allclose(model(INPUTS), reference(tensors)[0], atol=1e-4)
    assert "has no pooler.dense.weight; it starts at random" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "roberta"}, r"config.json: model_type is 'roberta', but only 'bert' can be loaded"),
        ({"position_embedding_type": "relative_key"}, r"position_embedding_type is 'relative_key'"),
        ({"hidden_act": "mish"}, r"hidden_act is 'mish', but only gelu, gelu_new"),
        ({"num_attention_heads": 3}, r"config.json: .*num_heads 3 does not divide hidden_dim 8"),
    ],
)
def test_another_kind_of_model_is_refused(tensors, write, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        read_published(write(tensors, CONFIG | changes))


def test_files_that_cannot_be_read_are_refused(tensors, write, tmp_path):
    with pytest.raises(UserError, match=r"config.json: cannot be read"):
        read_published(str(tmp_path))
    path = write(tensors)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read"):
        read_published(path)
    save_file({"weight": np.zeros(2, "float32")}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has no embeddings.word_embeddings.weight; it holds no BERT"):
        read_published(path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: does not exist; weights in other formats"):
        read_published(path)


@pytest.fixture
def shard(tensors, write, tmp_path):
    """shard(weight_map changes) writes the tensors into two files with an index, and returns the directory."""

    def shard(**changes):
        path = write({f"bert.{name}": tensor for name, tensor in tensors.items()})
        whole = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(whole)}
        for file in set(weight_map.values()):
            save_file({name: whole[name] for name in whole if weight_map[name] == file}, tmp_path / file)
        index = {"metadata": {}, "weight_map": weight_map | changes}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        return path

    return shard


def test_shards_give_what_the_whole_file_gives(tensors, shard):
    found = read_published(shard()).tensors
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_shards_say_whether_they_have_a_pooler(tensors, shard):
    assert has_pooler(str(shard()))
    for name in [name for name in tensors if name.startswith("pooler.")]:
        del tensors[name]
    assert not has_pooler(str(shard()))


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", "..", 7])
def test_an_index_that_leaves_its_directory_is_refused(shard, file):
    path = shard(more=file)
    with pytest.raises(UserError, match=rf"index\.json: names '{file}', which is no safetensors file beside it"):
        read_published(path)


def test_shards_that_lack_something_are_refused(shard, tmp_path):
    path = shard(more="model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: has no more, which model.safetensors.ind"):
        read_published(path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json: lacks 1 of its 2 files: model-00002-of-00002\.safetensors; get"):
        read_published(path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json: cannot be read \(TypeError"):
        read_published(path)


def test_a_model_of_the_hub_is_downloaded_and_read(tensors, write, monkeypatch):
    path = write(tensors)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: path)
    published = read_published("hf:someone/small")
    assert published.source == "hf:someone/small"
    np.testing.assert_allclose(published.build()(INPUTS), reference(tensors)[0], atol=1e-4)


def test_a_preset_of_keras_hub_gives_its_hidden_vectors(tmp_path):
    keras.utils.set_random_seed(1)
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "hidden_dim": WIDTH, "intermediate_dim": WIDE}
    backbone = keras_hub.models.BertBackbone(TOKENS, **sizes, max_sequence_length=POSITIONS)
    generator = np.random.default_rng(4)
    for weight in backbone.weights:
        weight.assign(weight.numpy() + generator.normal(scale=0.3, size=weight.shape))
    backbone.save_to_preset(str(tmp_path / "preset"))
    model = read_published(f"preset:{tmp_path / 'preset'}").build()
    theirs = backbone({**INPUTS, "padding_mask": tf.constant(IDS != 0)})
    hidden = model(INPUTS)
    np.testing.assert_allclose(hidden[IDS != 0], theirs["sequence_output"][IDS != 0], atol=1e-5)
    np.testing.assert_allclose(model.pooled(hidden), theirs["pooled_output"], atol=1e-5)
    with pytest.raises(UserError, match=r"preset:no_such: no weights of BERT can be loaded \("):
        read_published("preset:no_such")


def test_what_is_written_is_what_was_read(tensors, write, tmp_path):
    model = read_published(write(tensors)).build()
    write_huggingface(model, VOCABULARY, tmp_path / "written")
    stored = load_file(tmp_path / "written" / "model.safetensors")
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(stored[name], tensor, err_msg=name)
    config = json.loads((tmp_path / "written" / "config.json").read_text())
    assert CONFIG.items() <= config.items()
    assert read_vocabulary(str(tmp_path / "written")) == VOCABULARY
    with pytest.raises(UserError, match="written: exists already"):
        write_huggingface(model, VOCABULARY, tmp_path / "written")


def test_heads_go_out_and_come_back(tmp_path):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": WIDTH, "intermediate_dim": WIDE}
    model = Bert(TOKENS, **sizes)

    def heads():
        return {
            "cls.predictions": MaskedLanguageHead(TOKENS, WIDTH),
            "cls.seq_relationship": ClassificationHead(2, WIDTH, dropout=0.0),
            "classifier": ClassificationHead(3, WIDTH),
            "qa_outputs": SpanHead(WIDTH),
        }

    written, back = heads(), heads()
    written["cls.predictions"].bias.assign(np.arange(TOKENS) / 10)
    write_huggingface(model, VOCABULARY, tmp_path / "written", "BertForPreTraining", written, labels=["a", "b", "c"])
    stored = load_file(tmp_path / "written" / "model.safetensors")
    assert {name for name in stored if not name.startswith("bert.")} == {
        *(f"cls.predictions.transform.{part}.{key}" for part in ("dense", "LayerNorm") for key in ("weight", "bias")),
        *(
            f"{name}.{key}"
            for name in ("cls.seq_relationship", "classifier", "qa_outputs")
            for key in ("weight", "bias")
        ),
        "cls.predictions.bias",
    }
    read_published(str(tmp_path / "written")).assign(Bert(TOKENS, **sizes), back)
    for name, head in written.items():
        for ours, theirs in zip(head.trainable_weights, back[name].trainable_weights, strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    with pytest.raises(UserError, match=r"classifier.weight: the model has \(4, 8\), the source has \(3, 8\)"):
        read_published(str(tmp_path / "written")).assign(model, {"classifier": ClassificationHead(4, WIDTH)})


def test_a_model_can_go_on_from_another_one():
    model = Bert(TOKENS, num_layers=1, num_heads=2, hidden_dim=WIDTH, intermediate_dim=WIDE)
    again = published_of(model, "a run").build(dropout=0.0)
    np.testing.assert_array_equal(model(INPUTS), again(INPUTS))


def test_transformers_gives_the_same_hidden_vectors(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = Bert(TOKENS, num_layers=2, num_heads=2, hidden_dim=WIDTH, intermediate_dim=WIDE)
    write_huggingface(model, VOCABULARY, tmp_path / "written")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "written").eval()
    ids, segments = torch.tensor(IDS).long(), torch.tensor(SEGMENTS).long()
    with torch.no_grad():
        hidden = theirs(ids, attention_mask=(ids != 0).long(), token_type_ids=segments).last_hidden_state.numpy()
    np.testing.assert_allclose(model(INPUTS).numpy()[IDS != 0], hidden[IDS != 0], atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "written")
    assert tokenizer("a [MASK] é").input_ids == [2, 5, 4, 1, 3]
