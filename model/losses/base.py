"""What every contrastive loss offers to the training loop.

Shapes: W ranks, b images on each, R texts of each image (1 but for losses that take several), d
length of a feature.
"""

from __future__ import annotations

import abc

from torch import Tensor, nn

from tessera.model.losses.config import LossConfig


class ContrastiveLoss(nn.Module, abc.ABC):
    """A loss over matching rows of image and text features, of one or of several ranks.

    Every rank brings the same number of pairs. The mean over ranks of the returned values is
    the loss of the global batch, and the mean over ranks of the gradients, which is what
    DistributedDataParallel forms, is that loss's gradient, for the parameters behind the
    features as well as for the logit scale and bias.

    A loss that keeps state changes it in `forward` while in training mode, once a step.
    """

    @abc.abstractmethod
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        *,
        logit_bias: Tensor | None = None,
        sample_ids: Tensor | None = None,
        captions: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """This rank's share of the loss, computed in float32 also under autocast.

        Args:
            image_features: [b, d], unit length.
            text_features: [b*R, d], unit length, rows i*R up to i*R + R for the texts of image i.
            logit_scale: [], factor on the similarities (not its logarithm); without effect
                where the loss owns the temperature.
            logit_bias: [], added to the logits, by the losses that have one.
            sample_ids: [b] int64, which samples of the index these are, 0 .. num_samples-1;
                needed by the losses that keep state.
            captions: [b*R] int64 from `caption_keys`; needed where `same_caption` is not negative.
            step: steps done before this one, from the start of the run.

        Returns:
            [] float32.

        Raises:
            ValueError: an input that this loss needs is missing or misshapen.
        """

    @property
    def owns_temperature(self) -> bool:
        """Whether the loss has its own temperature, and the model's logit scale no effect."""
        return False

    def temperature(self) -> Tensor | None:
        """[] float32, the loss's own temperature for the log; None where it is the model's."""
        return None

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, on the CPU, the same for any number of ranks.

        A collective: every rank calls it, and gets all of it.
        """
        return {}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take what `state_tensors` gave, on this or another number of ranks.

        Raises:
            ValueError: the tensors are another loss's, or another number of samples'.
        """
        if tensors:
            raise ValueError(
                f"this loss keeps no state, the checkpoint has {', '.join(sorted(tensors))}: "
                "resume with the loss that the run began with"
            )


def compared_captions(
    config: LossConfig, captions: Tensor | None, image_features: Tensor, text_features: Tensor
) -> Tensor | None:
    """Keys of the captions where the loss goes by them; None where it does not.

    Raises:
        ValueError: they are needed and missing, or an image has several texts.
    """
    if config.same_caption == "negative":
        return None
    if len(image_features) != len(text_features):
        raise ValueError(
            f"same_caption {config.same_caption} compares one caption of each image, and here are "
            f"{len(text_features)} of {len(image_features)} images: take same_caption negative"
        )
    if captions is None or captions.shape != (len(text_features),):
        raise ValueError(f"same_caption {config.same_caption} needs a key of every caption")
    return captions


def check_features(image_features: Tensor, text_features: Tensor) -> None:
    """Refuse features that are not two matrices of one shape: a text for each image.

    Raises:
        ValueError: with both shapes.
    """
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            "image and text features must both be [B, d], got "
            f"{list(image_features.shape)} and {list(text_features.shape)}"
        )
