"""The old place of blocksparse.plan's patterns, modes and block table, for programs that import them from here."""

from blocksparse.plan.block_table import BlockTable as BlockTable
from blocksparse.plan.checks import check_positive as check_positive
from blocksparse.plan.modes import MODES as MODES
from blocksparse.plan.modes import Mode as Mode
from blocksparse.plan.modes import as_modes as as_modes
from blocksparse.plan.modes import head_modes as head_modes
from blocksparse.plan.patterns import *  # noqa: F403
