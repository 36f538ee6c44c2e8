"""DeiT in JAX: the models of ViT with a distillation token, and the one with a head on it.

Paper: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention", section 4.
Agrees with `modeling_deit` of transformers 5, and with that of 4.57.6 but for the patches that are reconstructed.
"""

from __future__ import annotations

from typing import Any, ClassVar

from flax import linen as nn
from jax import Array

from vit_core.family import DEIT
from vit_flax.base import FlaxViTPreTrainedModel
from vit_flax.losses import classification_loss, distillation_loss
from vit_flax.modeling import (
    FlaxViTForImageClassification,
    FlaxViTForImageClassificationModule,
    FlaxViTForMaskedImageModeling,
    FlaxViTForMaskedImageModelingModule,
    FlaxViTModel,
    FlaxViTModule,
)
from vit_flax.outputs import DeiTForImageClassificationWithTeacherOutput


class FlaxDeiTModule(FlaxViTModule):
    """The bare DeiT as a Linen module; see `FlaxDeiTModel`."""


class FlaxDeiTForImageClassificationModule(FlaxViTForImageClassificationModule):
    """The classifier as a Linen module; see `FlaxDeiTForImageClassification`."""

    trunk_class = FlaxDeiTModule


class FlaxDeiTForImageClassificationWithTeacherModule(FlaxViTForImageClassificationModule):
    """The classifier of both tokens as a Linen module; see `FlaxDeiTForImageClassificationWithTeacher`."""

    trunk_class = FlaxDeiTModule
    output_class: ClassVar[type[DeiTForImageClassificationWithTeacherOutput[Array]]] = (
        DeiTForImageClassificationWithTeacherOutput  # type: ignore[assignment]
    )
    tokens = 2

    @nn.nowrap
    def build_head(self) -> None:
        self.cls_classifier = self.build_classifier()
        self.distillation_classifier = self.build_classifier()

    def logits(self, x: Array) -> dict[str, Array]:
        ours, teachers = self.cls_classifier(x[:, 0]), self.distillation_classifier(x[:, 1])
        return {"logits": (ours + teachers) / 2, "cls_logits": ours, "distillation_logits": teachers}

    def __call__(
        self,
        pixel_values: Array | None = None,
        head_mask: Array | None = None,
        labels: Array | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        teacher_logits: Array | None = None,
    ) -> Any:
        """As `FlaxDeiTForImageClassificationWithTeacher`; pure, for `module.apply({"params": params}, ...)`."""
        options, trunk = self.encoded(
            pixel_values,
            None,
            head_mask,
            interpolate_pos_encoding,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            train=train,
        )
        found = self.logits(trunk.last_hidden_state)
        loss = None
        if teacher_logits is not None:
            heads = found["cls_logits"], found["distillation_logits"]
            loss = distillation_loss(*heads, labels, teacher_logits, self.config)
        elif labels is not None:
            loss = classification_loss(found["logits"], labels, self.config)
        return self.answer(options, trunk, loss=loss, **found)


class FlaxDeiTForMaskedImageModelingModule(FlaxViTForMaskedImageModelingModule):
    """Masked image modelling as a Linen module; see `FlaxDeiTForMaskedImageModeling`."""

    trunk_class = FlaxDeiTModule


class FlaxDeiTPreTrainedModel(FlaxViTPreTrainedModel):
    """Base of DeiT's models."""

    config_class = DEIT.config
    base_model_prefix = DEIT.trunk


class FlaxDeiTModel(FlaxDeiTPreTrainedModel, FlaxViTModel):
    """The bare DeiT: a ViT whose second token is the distillation token; returns `BaseModelOutputWithPooling`."""

    architecture = "DeiTModel"
    module_class = FlaxDeiTModule


class FlaxDeiTForImageClassification(FlaxDeiTPreTrainedModel, FlaxViTForImageClassification):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`."""

    architecture = "DeiTForImageClassification"
    module_class = FlaxDeiTForImageClassificationModule


class FlaxDeiTForImageClassificationWithTeacher(FlaxDeiTPreTrainedModel, FlaxViTForImageClassification):
    """A classifier on each of both tokens; returns `DeiTForImageClassificationWithTeacherOutput`.

    A teacher's logits in a call give the loss of distillation: with `labels` and `teacher_logits` (B, K) the CLS
    token's head learns the labels, the other the teacher. `labels` alone give the loss of the mean of both heads.
    """

    architecture = "DeiTForImageClassificationWithTeacher"
    module_class: ClassVar[type[FlaxDeiTForImageClassificationWithTeacherModule]] = (
        FlaxDeiTForImageClassificationWithTeacherModule
    )


class FlaxDeiTForMaskedImageModeling(FlaxDeiTPreTrainedModel, FlaxViTForMaskedImageModeling):
    """A 1x1 convolution and a pixel shuffle that reconstruct the image; returns `MaskedImageModelingOutput`."""

    architecture = "DeiTForMaskedImageModeling"
    module_class = FlaxDeiTForMaskedImageModelingModule
