"""The families of checkpoints beside Hugging Face's, one module each."""

from conversion.formats.google import BIG_VISION, GOOGLE
from conversion.formats.keras import KERAS
from conversion.formats.keras_hub import KERAS_HUB
from conversion.formats.timm import TIMM
from conversion.formats.torchvision import TORCHVISION

FAMILIES = {family.name: family for family in (TIMM, GOOGLE, BIG_VISION, TORCHVISION, KERAS_HUB, KERAS)}
