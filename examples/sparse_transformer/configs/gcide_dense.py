"""gcide with full attention; all else is the same."""

from dataclasses import replace

from .gcide import CONFIG as FIXED

CONFIG = replace(FIXED, name="gcide_dense", layer_modes=("all",))
