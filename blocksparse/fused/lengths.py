"""Attention over tensors whose time is known only when a graph runs: a few plans, of which it takes one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from ..native.devices import in_xla
from . import reference
from .op import Layout, PackedPlan


class Lengths:
    """The layouts of a pattern for a few times, ascending; used where an Attention is.

    longest: the most positions a tensor may have, at most those of the last layout.
    looks_ahead: some query may see a key behind the tensors' end, which the kernels have to hide.
    """

    def __init__(self, layouts: Sequence[Layout], longest: int, looks_ahead: bool):
        self.layouts, self.longest, self.looks_ahead = tuple(layouts), longest, looks_ahead
        self.blocks = self.layouts[-1].blocks
        self._joint: dict[tuple, JointPlan] = {}
        self._of_order: dict[tuple, Lengths] = {}

    def plan_for(
        self, dtype, head_dim: int, value_dim: int, order: tuple[int, ...], kv_heads: int, cut: bool
    ) -> JointPlan:
        """The plans of all layouts, one behind the other."""
        plans = [layout.plan_for(dtype, head_dim, value_dim, order, kv_heads, cut) for layout in self.layouts]
        key = tuple(map(id, plans))
        if key not in self._joint:
            times = [layout.blocks.query_time for layout in self.layouts]
            self._joint.setdefault(
                key, JointPlan(plans, times, self.longest)
            )  # another thread's, if it was first
        return self._joint[key]

    def tables(self, order: tuple[int, ...], kv_heads: int) -> reference.Tables:
        return self.layouts[-1].tables(order, kv_heads)

    def of_order(self, order: tuple[int, ...], wanted: int) -> Lengths:
        """As Attention's."""
        if (order, wanted) not in self._of_order:
            layouts = [layout.of_order(order, wanted) for layout in self.layouts]
            self._of_order[order, wanted] = Lengths(layouts, self.longest, self.looks_ahead)
        return self._of_order[order, wanted]


class JointPlan(PackedPlan):
    """Several plans in one vector, of which a call reads the first that is long enough."""

    def __init__(self, plans: Sequence[PackedPlan], times: Sequence[int], longest: int):
        super().__init__(np.concatenate([plan.blob for plan in plans]))
        self.sizes = np.array([len(plan.blob) for plan in plans], np.int32)
        self.times, self.longest = np.array(times, np.int32), longest

    def part(self, plan: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
        """That of q's time, out of the whole vector `plan`."""
        with tf.device("CPU:0"):  # numbers that the host reads, wherever q is
            time = checked_time(q, self.longest)
            number = tf.reduce_sum(tf.cast(self.times[:-1] < time, tf.int32))
            start = tf.gather(np.cumsum(self.sizes) - self.sizes, number)
            return tf.slice(plan, [start], [tf.gather(self.sizes, number)])


def checked_time(q: tf.Tensor, longest: int) -> tf.Tensor:
    """q's time when the graph runs, which stops there if it is above `longest`; under XLA the kernels refuse it."""
    time = tf.shape(q)[1]
    if in_xla():
        return time
    wanted = f"above max_time={longest}, for which this graph was traced: trace it with a larger max_time"
    check = tf.debugging.Assert(time <= longest, ["time is", time, wanted])
    with tf.control_dependencies(None if tf.executing_eagerly() else [check]):
        return tf.identity(time)
