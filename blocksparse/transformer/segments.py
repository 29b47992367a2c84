"""Segment numbers: which positions of a batch row may see each other at all, whatever the pattern."""

from __future__ import annotations

import tensorflow as tf

from ..tensors import TensorLike, as_indices

# int32 [batch, query_time], [batch, key_time]: what is equal may meet; a negative number is padding and meets nothing
Segments = tuple[tf.Tensor, tf.Tensor]


def segment_numbers(
    segment_ids: TensorLike | tuple[TensorLike, TensorLike] | None,
    lengths: TensorLike | None,
    q: tf.Tensor,
    k: tf.Tensor,
) -> Segments | tuple[()]:
    """The numbers of queries and of keys, or nothing where neither argument is given.

    segment_ids: int32 [batch, time], or what fits it, or a tuple of two, the queries' and the keys'; negative: padding.
    lengths: [batch], of any integer dtype; positions from there on are padding. q, k: [batch, time, width].
    Raises ValueError, TypeError for what does not fit.
    """
    if segment_ids is None and lengths is None:
        return ()
    if segment_ids is None:
        query = key = None
    elif isinstance(segment_ids, tuple):
        if len(segment_ids) != 2:
            raise ValueError(
                f"segment_ids is a tuple of {len(segment_ids)}; give one tensor [batch, time], or the pair (of the "
                "queries, of the keys)"
            )
        query, key = (_numbers(f"segment_ids[{i}]", segment_ids[i], x) for i, x in enumerate((q, k)))
    else:
        _check_square("segment_ids", "is one tensor", q, k)
        query = key = _numbers("segment_ids", segment_ids, q)
    if lengths is not None:
        _check_square("lengths", "is given", q, k)
        # What int32 does not hold is beyond any time, too.
        lengths = tf.saturate_cast(as_indices("lengths", lengths), tf.int32)
        lengths = tf.ensure_shape(_shaped("lengths", lengths, q.shape[:1], "[batch]"), q.shape[:1])
        inside = tf.range(tf.shape(q)[1]) < lengths[:, None]
        query, key = padding_where(inside, query), padding_where(inside, key)
    return query, key


def padding_where(there: tf.Tensor, numbers: tf.Tensor | None = None) -> tf.Tensor:
    """The numbers, or 0, where `there`, else -1.

    Written in operations that run on GPUs. Int32 tensors TensorFlow compares and adds on the host, even on a GPU
    machine: the kernels would wait for copies there and back.
    """
    padding = tf.cast(tf.cast(there, tf.float32) - 1.0, tf.int32)
    return padding if numbers is None else tf.bitwise.bitwise_or(numbers, padding)


def equal_segments(segments: Segments) -> tf.Tensor:
    """bool [batch, 1, query_time, key_time]: whether a query's number is a key's."""
    query, key = segments
    query, key = query[:, None, :, None], key[:, None, None, :]
    return tf.equal(query, key) & (query >= 0)


def _numbers(name: str, x: TensorLike, rows: tf.Tensor) -> tf.Tensor:
    wanted = rows.shape[:2]
    x = _shaped(name, _int32(name, as_indices(name, x)), wanted, "[batch, time]")
    if x.shape.rank is not None and all(
        size in (None, own) for size, own in zip(wanted.as_list(), x.shape.as_list(), strict=True)
    ):
        return x
    # TensorFlow ensures the shape of int32 tensors on the host, even on a GPU machine, as it compares them there.
    return tf.bitcast(tf.ensure_shape(tf.bitcast(x, tf.float32), wanted), tf.int32)


def _int32(name: str, x: tf.Tensor) -> tf.Tensor:
    """x of int32 or int64 as int32. Two numbers that differ must not become one, so int64 has to be known."""
    if x.dtype.base_dtype == tf.int32:
        return x
    known = tf.get_static_value(x)
    if known is None:
        raise TypeError(f"{name} is {x.dtype.name}, of numbers unknown here; cast it to int32")
    for number in (known.min(initial=0), known.max(initial=0)):
        if not tf.int32.min <= number <= tf.int32.max:
            raise ValueError(f"{name} holds {number}; its numbers have to fit int32")
    return tf.constant(known, tf.int32)


def _shaped(name: str, x: tf.Tensor, wanted: tf.TensorShape, axes: str) -> tf.Tensor:
    if not x.shape.is_compatible_with(wanted):
        raise ValueError(f"{name} has shape {x.shape}; it has to be {axes} = {wanted}")
    return x


def _check_square(name: str, what: str, q: tf.Tensor, k: tf.Tensor) -> None:
    if not q.shape[1:2].is_compatible_with(k.shape[1:2]):
        raise ValueError(
            f"{name} {what}, but there are {q.shape[1]} queries and {k.shape[1]} keys: give segment_ids as a pair (of "
            "the queries, of the keys)"
        )
