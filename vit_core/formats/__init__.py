"""The formats of checkpoints beside Hugging Face's, one module each."""

from vit_core.formats.google import BIG_VISION, GOOGLE
from vit_core.formats.keras import KERAS
from vit_core.formats.keras_hub import KERAS_HUB
from vit_core.formats.keras_hub_dinov2 import KERAS_HUB_DINOV2
from vit_core.formats.mae import MAE_FORMAT
from vit_core.formats.timm import TIMM
from vit_core.formats.timm_beit import TIMM_BEIT
from vit_core.formats.torchvision import TORCHVISION

_ALL = (TIMM, TIMM_BEIT, MAE_FORMAT, GOOGLE, BIG_VISION, TORCHVISION, KERAS_HUB, KERAS_HUB_DINOV2, KERAS)
FORMATS = {format.name: format for format in _ALL}
