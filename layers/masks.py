"""What the layers make of masks: padding becomes segment numbers, what a pattern cannot express is refused."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from blocksparse.transformer.segments import Segments, padding_where, segment_numbers


def layer_segments(x: tf.Tensor, mask: Any, segment_ids: Any, lengths: Any) -> Segments | None:
    """Segment numbers of x [batch, time, width] with padding where the Keras mask is False; None where all may meet."""
    numbers = segment_numbers(segment_ids, lengths, x, x)
    if mask is None:
        return numbers or None
    mask = tf.convert_to_tensor(mask)
    if mask.dtype != tf.bool or not mask.shape.is_compatible_with(x.shape[:2]):
        raise ValueError(
            f"mask is {mask.dtype.name} of shape {mask.shape}; it has to be bool [batch, time] = {x.shape[:2]}, False "
            "where padding is"
        )
    query, key = numbers or (None, None)
    return padding_where(mask, query), padding_where(mask, key)


def refuse_attention_mask(attention_mask: Any) -> None:
    """Raises ValueError where one is given."""
    if attention_mask is not None:
        raise ValueError(
            "attention_mask was given, which SparseSelfAttention does not take: who sees whom is its pattern, the same "
            "for every batch row; say it by attn_mode or sees. Padding is said by the Keras mask or lengths, packed "
            "documents by segment_ids"
        )
