"""gcide with local and strided merged, l = 128, as enwik8_strided; all else is the same."""

from dataclasses import replace

from .gcide import CONFIG as FIXED

CONFIG = replace(FIXED, name="gcide_strided", layer_modes=("local+strided",))
