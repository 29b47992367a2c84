"""ImageNet 64x64 at twice the depth, 302.96M parameters: the model of the paper's Figure 5."""

from dataclasses import replace

from .imagenet64 import CONFIG as HALF

CONFIG = replace(HALF, name="imagenet64_300m", layers=96)
