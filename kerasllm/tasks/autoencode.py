"""Picture in, a few numbers out, of which the picture can be made again; and new pictures made of drawn numbers.

record      {"image": b"\\x89PNG..."}       what else there is, such as "label", is left alone
features    image   [12 40 255 ...]         uint8, H * W * D numbers: rows of pixels, each with its channels
            present [1]                     0 where there is no picture, but padding
answer      {"error": 0.012, "latent": [0.3, -1.2, ...]}
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kerasllm.errors import UserError
from kerasllm.models.settings import VaeSettings
from kerasllm.picture_task import PictureSettings, PictureTask
from kerasllm.settings import Settings
from kerasllm.task import refuse_r_drop

if TYPE_CHECKING:
    from collections.abc import Sequence

    import keras
    import tensorflow as tf
    from matplotlib.figure import Figure

    from kerasllm.data.vocabulary import Vocabulary

NUM_SHOWN, NUM_STEPS = 8, 8


class AutoencodingSettings(Settings):
    """What a picture that is made again is compared by."""

    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """Of a pixel between 0 and 1: a coin for each, or a normal distribution around what is given."""
    noise: float = Field(default=0.1, gt=0)
    """Standard deviation of the normal distribution."""
    beta: float = Field(default=1.0, ge=0)
    """What the divergence counts for: above 1 the latent numbers become more independent, and pictures coarser."""


class Autoencode(PictureTask):
    r"""Trains and asks a `Vae`.

    $$\ell = -\log p(x \mid z) + \beta\, D(q(z \mid x) \,\|\, p(z)), \quad z \sim q(z \mid x)$$

    in nats for each picture. In answers z is its mean.

    References: [Kingma and Welling, 2013](https://arxiv.org/abs/1312.6114); beta
    [Higgins et al., 2017](https://openreview.net/forum?id=Sy2fzU9gl).

    Raises:
        UserError: see `PictureTask`, or the objective compares probabilities.
    """

    reference = None
    metric_names = ("reconstruction", "divergence")
    sections = {"picture": PictureSettings, "model": VaeSettings, "autoencoding": AutoencodingSettings}

    def __init__(self, recipe: Any, vocabulary: Vocabulary):
        super().__init__(recipe, vocabulary)
        refuse_r_drop(recipe, "compares probabilities of labels")
        self.settings: AutoencodingSettings = recipe.autoencoding
        self.augmented_inputs = {"image": self.picture.shape}

    def build_model(self) -> keras.Model:
        """The model that this task trains and asks, of the recipe's numbers."""
        from kerasllm.models.vae import Vae

        try:
            self.model = Vae(*self.picture.shape, **self.recipe.model.model_dump(exclude={"name"}))
        except ValueError as error:  # of a number that does not fit the size of the pictures
            raise UserError(f"{self.recipe.place('model')}: {error}") from error
        return self.model

    def forward(
        self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What `Vae` makes of `image`, uint8 [B, H * W * D]."""
        return model(self.picture.seen(batch["image"]), training=training)

    def parts_of_loss(self, outputs: Any, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """$-\\log p(x \\mid z)$ and the divergence, [B] each, in nats."""
        import math

        import tensorflow as tf

        from kerasllm.layers.sampling import divergence_from_normal

        made, mean, log_variance = outputs
        pixels = tf.cast(tf.reshape(batch["image"], tf.shape(made)), made.dtype) / 255.0
        if self.settings.likelihood == "bernoulli":
            losses = tf.nn.sigmoid_cross_entropy_with_logits(pixels, made)
        else:
            noise = self.settings.noise
            losses = 0.5 * tf.square((pixels - made) / noise) + math.log(noise * math.sqrt(2 * math.pi))
        return tf.reduce_sum(losses, axis=[1, 2, 3]), divergence_from_normal(mean, log_variance)

    def loss(self, logits: Any, batch: dict[str, tf.Tensor], label_smoothing: float) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of each picture, [B, 1], and its weight, 0 for padding.

        Args:
            logits: from `forward`.
            batch: with `image` and `present`.
            label_smoothing: is without effect.
        """
        import tensorflow as tf

        reconstruction, divergence = self.parts_of_loss(logits, batch)
        return (reconstruction + self.settings.beta * divergence)[:, None], tf.cast(batch["present"], tf.float32)

    def sums(self, logits: Any, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Both parts of the loss, and how many pictures they are of."""
        import tensorflow as tf

        present = tf.cast(batch["present"][:, 0], tf.float32)
        reconstruction, divergence = (tf.reduce_sum(part * present) for part in self.parts_of_loss(logits, batch))
        return {"reconstruction": reconstruction, "divergence": divergence, "pictures": tf.reduce_sum(present)}

    def metrics_of_sums(self, sums: dict[str, float]) -> dict[str, Any]:
        """`reconstruction` and `divergence`, nats for each picture."""
        return {name: sums[name] / max(1.0, sums["pictures"]) for name in self.metric_names}

    def metrics(self, answers: list[dict[str, Any]], references: list[str]) -> dict[str, Any]:
        """`error`, the mean over the pictures."""
        return {"error": sum(answer["error"] for answer in answers) / max(1, len(answers))}

    def answer(self, contents: tf.Tensor) -> dict[str, tf.Tensor]:
        """What pictures become, as graph operations.

        Args:
            contents: of JPEG or PNG files, string [B].

        Returns:
            `error` float32 [B], the mean squared difference of pixels between 0 and 1 from those made again, and
            `latent` float32 [B, Z], the numbers that these were made of.
        """
        import tensorflow as tf

        pixels = self.picture.decode(contents)
        made, mean, _ = self.forward(self.model, {"image": pixels}, training=False)
        error = tf.reduce_mean(tf.square(tf.cast(pixels, tf.float32) / 255.0 - self.between_0_and_1(made)), [1, 2, 3])
        return {"error": error, "latent": mean}

    def between_0_and_1(self, made: tf.Tensor) -> tf.Tensor:
        """Pixels of pictures that the model has made."""
        import tensorflow as tf

        return tf.sigmoid(made) if self.settings.likelihood == "bernoulli" else tf.clip_by_value(made, 0.0, 1.0)

    def pictures(
        self, answers: list[dict[str, Any]], references: list[str], columns: Sequence[Sequence[Any]]
    ) -> dict[str, Figure]:
        """`reconstructions` of the first pictures, `samples` of drawn numbers, and `walks` from picture to picture."""
        import numpy as np
        import tensorflow as tf

        from kerasllm.picture_grid import draw_grid

        def made_of(latent: np.ndarray) -> np.ndarray:
            pixels = self.between_0_and_1(self.model.decode(tf.constant(latent, tf.float32)))
            return np.round(255 * pixels.numpy()).astype(np.uint8)

        shown = [columns[0][place] for place in range(min(NUM_SHOWN, len(columns[0])))]
        originals = self.picture.decode(tf.constant(shown)).numpy()
        latent = np.float32([answer["latent"] for answer in answers[: len(shown)]])
        both = np.concatenate([originals, made_of(latent)])
        captions = ["as it is"] * len(shown) + ["made again"] * len(shown)
        drawn = np.random.default_rng(self.recipe.seed).normal(size=(NUM_SHOWN**2, self.recipe.model.latent_dim))
        shares = np.linspace(0, 1, NUM_STEPS)[:, np.newaxis]
        walks = [(1 - shares) * start + shares * end for start, end in pairwise(latent)]
        figures = {
            "reconstructions": draw_grid(both, captions, len(shown), "pictures, and what is made of their numbers"),
            "samples": draw_grid(made_of(drawn), [""] * len(drawn), NUM_SHOWN, "pictures of drawn numbers"),
        }
        if walks:
            steps = made_of(np.concatenate(walks))
            figures["walks"] = draw_grid(steps, [""] * len(steps), NUM_STEPS, "from one picture to the next")
        return figures
