"""fashion with full attention; all else is the same."""

from dataclasses import replace

from .fashion import CONFIG as STRIDED

CONFIG = replace(STRIDED, name="fashion_dense", layer_modes=("all",))
