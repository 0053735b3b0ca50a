"""What a recipe can say in its section `model`, one class per architecture. Loads no TensorFlow."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kerasllm.settings import Settings


class BertSettings(Settings):
    """The numbers of `models/bert.py`. The vocabulary size is not one of them: the tokenizer has it.

    Published sizes, as num_layers, num_heads, hidden_dim, intermediate_dim (Devlin et al., 2018; Turc et al., 2019):
    tiny 2, 2, 128, 512; mini 4, 4, 256, 1024; small 4, 8, 512, 2048; medium 8, 8, 512, 2048;
    base 12, 12, 768, 3072; large 24, 16, 1024, 4096.
    """

    num_layers: int = Field(default=12, ge=1)
    num_heads: int = Field(default=12, ge=1)
    hidden_dim: int = Field(default=768, ge=1)
    intermediate_dim: int = Field(default=3072, ge=1)
    max_sequence_length: int = Field(default=512, ge=2)
    """Positions, special tokens included."""
    num_segments: int = Field(default=2, ge=1)
    """Kinds of segments that a sequence may consist of."""
    activation: Literal["gelu", "gelu_approximate", "relu", "silu", "tanh"] = "gelu"
    """Published weights need the one that they were trained with: most `gelu`, the exact form."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """After the embeddings and after each part of a block."""
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of the attention probabilities."""
    epsilon: float = Field(default=1e-12, gt=0)
    """Of the normalizations."""
    initializer_stddev: float = Field(default=0.02, gt=0)
    """Of the normal distribution, cut at two of it, that the weights begin with."""

    @model_validator(mode="after")
    def _check_widths(self) -> "BertSettings":
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_dim {self.hidden_dim}")
        return self


class PretrainedBertSettings(BertSettings):
    """A `Bert` that may begin with trained weights."""

    pretrained: str | None = None
    """A run of our own that is at its end, or a directory in the layout of Hugging Face, both relative to the data
    directory and, where nothing is there, to the working directory; `hf:OWNER/NAME` or `preset:NAME`. The numbers are
    then those that it was trained with, and the tokenizer is its own. A head is taken over where the task has one of
    the same kind, shape and labels. null begins at random."""

    @property
    def numbers(self) -> dict[str, Any]:
        """What `Bert` takes besides the size of the vocabulary."""
        return self.model_dump(exclude={"pretrained"})


class MultilayerPerceptronSettings(Settings):
    """The numbers of `models/multilayer_perceptron.py`."""

    name: Literal["multilayer_perceptron"] = "multilayer_perceptron"
    num_layers: int = Field(default=1, ge=0)
    """Hidden layers; without one it is softmax regression."""
    hidden_dim: int = Field(default=64, ge=1)
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """After each hidden layer."""


class ConvolutionLayerSettings(Settings):
    """Convolution, normalization and activation."""

    name: Literal["convolution"] = "convolution"
    filters: int = Field(default=32, ge=1)
    kernel_size: Literal[1, 3, 5, 7] = 3
    strides: int = Field(default=1, ge=1)
    pool: int = Field(default=1, ge=1)
    """Only the greatest of each square of this side is normalized, which is less work than a layer `pool` behind it."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    normalization: Literal["batch", "synchronized_batch", "group", "none"] = "batch"
    begins_as: Literal["random", "identity"] = "random"
    """Whether the first filters begin with giving what comes in, as many as there are channels."""


class WhiteningLayerSettings(Settings):
    """The directions in which patches of the training pictures vary, by `layers/whitening.py`, and activation."""

    name: Literal["whitening"]
    kernel_size: Literal[2, 3] = 2
    """k: of pictures with D channels it makes 2 k k D."""
    padding: Literal["same", "valid"] = "same"
    """With zeros around the picture, or whole patches only: k - 1 rows and columns fewer."""
    activation: Literal["relu", "gelu", "silu"] = "relu"


class PoolLayerSettings(Settings):
    """The greatest of each square of places."""

    name: Literal["pool"]
    size: int = Field(default=2, ge=1)
    """Of its side."""


class DenseLayerSettings(Settings):
    """Dense and relu."""

    name: Literal["dense"]
    units: int = Field(ge=1)


class DropoutLayerSettings(Settings):
    """Some of the values become 0 in training."""

    name: Literal["dropout"]
    rate: float = Field(gt=0, lt=1)


LayerSettings = Annotated[
    ConvolutionLayerSettings | WhiteningLayerSettings | PoolLayerSettings | DenseLayerSettings | DropoutLayerSettings,
    Field(discriminator="name"),
]


class ConvNetSettings(Settings):
    """The layers of `models/conv_net.py`."""

    name: Literal["conv_net"] = "conv_net"
    layers: tuple[LayerSettings, ...] = (
        ConvolutionLayerSettings(filters=32),
        PoolLayerSettings(name="pool"),
        ConvolutionLayerSettings(filters=64),
    )
    """One after the other. What a convolution sees is averaged over all places before the first dense layer; after that
    there can be dense layers and dropout only."""
    logit_scale: float = Field(default=1.0, gt=0)
    """What the logits are multiplied by; with s the last layer learns s^2 times as fast."""

    @model_validator(mode="after")
    def _check_order(self) -> "ConvNetSettings":
        is_dense = False
        for index, layer in enumerate(self.layers):
            is_dense = is_dense or layer.name == "dense"
            if is_dense and layer.name in ("convolution", "pool"):
                raise ValueError(f"layers: number {index + 1}, {layer.name}, comes after a dense one")
            if layer.name == "whitening" and index:
                raise ValueError(f"layers: number {index + 1}, whitening, must come first: it is made for pictures")
        return self


class ResNetSettings(Settings):
    """The numbers of `models/resnet.py`, where published sizes stand, too."""

    name: Literal["resnet"] = "resnet"
    blocks: tuple[int, ...] = (3, 3, 3)
    """Of each stage; one after the first halves height and width."""
    filters: tuple[int, ...] = (16, 32, 64)
    """Of each stage."""
    bottleneck: bool = False
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1 in a block, and not two of 3 x 3."""
    stem: Literal["small", "large"] = "small"
    """For pictures of 32 x 32 or so, or of 224 x 224."""
    order: Literal["post", "pre"] = "post"
    """Activation after each convolution, or before it."""
    normalization: Literal["batch", "synchronized_batch", "group"] = "batch"
    """Over the batch of each replica, over that of all, or within each picture."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Before the last layer."""

    @model_validator(mode="after")
    def _check_stages(self) -> "ResNetSettings":
        if len(self.blocks) != len(self.filters):
            raise ValueError(f"blocks: has {len(self.blocks)} stages, and filters {len(self.filters)}")
        if not self.blocks or min(*self.blocks, *self.filters) < 1:
            raise ValueError("blocks: a stage must have a block and a filter at least")
        return self


class VisionTransformerSettings(Settings):
    """The numbers of `models/vision_transformer.py`.

    Published sizes, as num_layers, num_heads, hidden_dim, intermediate_dim (Dosovitskiy et al., 2020; Touvron et al.,
    2020): tiny 12, 3, 192, 768; small 12, 6, 384, 1536; base 12, 12, 768, 3072; all with a patch_size of 16.
    """

    name: Literal["vision_transformer"] = "vision_transformer"
    patch_size: int = Field(default=4, ge=1)
    """Side of a patch in pixels; divides height and width of the pictures."""
    num_layers: int = Field(default=6, ge=1)
    num_heads: int = Field(default=4, ge=1)
    hidden_dim: int = Field(default=128, ge=1)
    intermediate_dim: int = Field(default=512, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """After the patches and after each part of a block."""

    @model_validator(mode="after")
    def _check_widths(self) -> "VisionTransformerSettings":
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide hidden_dim {self.hidden_dim}")
        return self


class FromRunSettings(Settings):
    """What a model of pictures has that may begin with trained weights."""

    pretrained: str | None = None
    """A run of our own that is at its end, with a model of the same name, relative to the data directory and, where
    nothing is there, to the working directory; for a ResNet also a preset of keras-hub, such as
    `preset:resnet_18_imagenet`. The numbers and the section `picture` are taken; the head of a run is taken over where
    the labels are the same. null begins at random."""


class PretrainedConvNetSettings(ConvNetSettings, FromRunSettings):
    """A `ConvNet` that may begin with trained weights."""


class PretrainedResNetSettings(ResNetSettings, FromRunSettings):
    """A `ResNet` that may begin with trained weights."""


class PretrainedVisionTransformerSettings(VisionTransformerSettings, FromRunSettings):
    """A `VisionTransformer` that may begin with trained weights."""


class VaeSettings(Settings):
    """The numbers of `models/vae.py`."""

    name: Literal["vae"] = "vae"
    filters: tuple[int, ...] = (32, 64)
    """Of the convolutions, each of which halves height and width."""
    hidden_dim: int = Field(default=256, ge=1)
    """Between what they see and the latent numbers."""
    latent_dim: int = Field(default=16, ge=1)
    """Numbers that a picture is made of again."""


class SurfaceSettings(Settings):
    """The numbers of `models/surface.py`."""

    landscape: Literal["valley", "rosenbrock", "beale", "saddle"] = "valley"
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the gradient of one example."""


class EncoderDecoderSettings(Settings):
    """The numbers of `models/encoder_decoder.py`. The vocabulary size is not one of them: the tokenizer has it.

    Published sizes (Vaswani et al., 2017), both with normalization post:
    base: 6 layers, 8 heads, 512 hidden, 2048 intermediate, dropout 0.1; big: 6, 16, 1024, 4096, dropout 0.3.
    """

    num_layers: int = Field(default=6, ge=1)
    """Blocks of the encoder, and as many of the decoder."""
    num_heads: int = Field(default=8, ge=1)
    hidden_dim: int = Field(default=512, ge=2)
    intermediate_dim: int = Field(default=2048, ge=1)
    max_sequence_length: int = Field(default=256, ge=2)
    """Positions of source and of target, special tokens included."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """After the embeddings and after each part of a block."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the attention probabilities."""
    activation_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Inside the feed-forward networks."""
    normalization: Literal["pre", "post"] = "pre"
    """Before each part of a block, or after it."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"

    @model_validator(mode="after")
    def _check_widths(self) -> "EncoderDecoderSettings":
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_dim {self.hidden_dim}")
        if self.hidden_dim % 2 and self.positions == "sinusoidal":
            raise ValueError(f"hidden_dim {self.hidden_dim} must be even for sinusoidal positions")
        return self
