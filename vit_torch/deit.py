"""DeiT in PyTorch: the models of ViT with a distillation token, and the one with a head on it.

Paper: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention", section 4.
Agrees with `modeling_deit` of transformers 5, and with that of 4.57.6 but for the patches that are reconstructed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vit_core.family import DEIT
from vit_torch.base import ViTPreTrainedModel
from vit_torch.losses import classification_loss, distillation_loss
from vit_torch.modeling import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from vit_torch.outputs import DeiTForImageClassificationWithTeacherOutput


class DeiTPreTrainedModel(ViTPreTrainedModel):
    """Base of DeiT's models."""

    config_class = DEIT.config
    base_model_prefix = DEIT.trunk


class DeiTModel(DeiTPreTrainedModel, ViTModel):
    """The bare DeiT: a ViT whose second token is the distillation token; returns `BaseModelOutputWithPooling`."""

    architecture = "DeiTModel"


class DeiTForImageClassification(DeiTPreTrainedModel, ViTForImageClassification):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`."""

    architecture = "DeiTForImageClassification"
    trunk_class = DeiTModel


class DeiTForImageClassificationWithTeacher(DeiTPreTrainedModel, ViTForImageClassification):
    """A classifier on each of both tokens; returns `DeiTForImageClassificationWithTeacherOutput`.

    A teacher's logits in a call give the loss of distillation.
    """

    architecture = "DeiTForImageClassificationWithTeacher"
    trunk_class = DeiTModel
    output_class: type[DeiTForImageClassificationWithTeacherOutput[Tensor]] = (
        DeiTForImageClassificationWithTeacherOutput  # type: ignore[assignment]
    )
    tokens = 2

    def build_head(self) -> None:
        self.cls_classifier = self.build_classifier("cls_classifier")
        self.distillation_classifier = self.build_classifier("distillation_classifier")

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        ours, teachers = self.cls_classifier(x[:, 0]), self.distillation_classifier(x[:, 1])
        return {"logits": (ours + teachers) / 2, "cls_logits": ours, "distillation_logits": teachers}

    def forward(
        self,
        pixel_values: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        teacher_logits: Tensor | None = None,
    ) -> Any:
        """As `DeiTForImageClassification`; `labels` alone give the loss of the mean of both heads.

        With `teacher_logits` (B, K) as well, the loss is that of distillation: the CLS token's head learns the labels,
        the other the teacher.
        """
        options, trunk = self.encoded(
            pixel_values,
            None,
            head_mask,
            interpolate_pos_encoding,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )
        found = self.logits(trunk.last_hidden_state)
        loss = None
        if teacher_logits is not None:
            heads = found["cls_logits"], found["distillation_logits"]
            loss = distillation_loss(*heads, labels, teacher_logits, self.config)
        elif labels is not None:
            loss = classification_loss(found["logits"], labels, self.config)
        return self.answer(options, trunk, loss=loss, **found)


class DeiTForMaskedImageModeling(DeiTPreTrainedModel, ViTForMaskedImageModeling):
    """A 1x1 convolution and a pixel shuffle that reconstruct the image; returns `MaskedImageModelingOutput`."""

    architecture = "DeiTForMaskedImageModeling"
    trunk_class = DeiTModel
