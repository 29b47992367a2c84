"""The kernels for Hopper, in Gluon: warpgroups with roles of their own, one fetches, one to three compute.

A program takes row tiles of 64, 128 or 192, 64 rows a computing warpgroup: one, or where rows are short one after
another. The fetching one copies column tiles into a ring in shared memory; mbarriers say when a tile is there and when
all others are done with it. cp.async takes row numbers, so all granules and orders of rows do. Results are those of the
plain kernels of the same name.
"""

from .forward import attention_forward_roles
from .key_gradient import attention_key_gradient_roles
from .query_gradient import attention_query_gradient_roles

__all__ = ["attention_forward_roles", "attention_key_gradient_roles", "attention_query_gradient_roles"]
