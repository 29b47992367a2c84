"""Which slots a GPU's decoding steps read and write: followed in NumPy, they give full attention."""

import numpy as np
import pytest
import tensorflow as tf
from test_model_decode import MODES, pattern

from sparse_attention.attention import attention_impl
from sparse_attention.decode import DecodeStep
from sparse_attention.layers import step_tables

N_CTX, KEY, VALUE = 128, 4, 8


def followed(step, q, k, v, positions, jit=False):
    """Attention of every step of positions [steps, rows], from the tables alone. q, k, v [rows, n_ctx, heads, dim]."""

    def compute():
        return [step_tables.tables(group, tf.constant(positions), N_CTX) for group in step.groups]

    compute = tf.function(compute, jit_compile=True) if jit else compute
    out = np.zeros((*positions.shape, *v.shape[2:]))
    for group, tables in zip(step.groups, compute(), strict=True):
        words, begins, places, ends = (table.numpy().view(np.int32) for table in tables)
        assert words.shape[-1] == step_tables.word_count(group)
        cache = np.full((step.batch, group.slots, len(group.heads), KEY + VALUE), np.nan)
        seen = (words.view(np.uint32)[..., None] >> np.arange(32, dtype=np.uint32)) & 1
        for at in np.ndindex(positions.shape):
            row, position = at[1], positions[at]
            for member, head in enumerate(group.heads):
                if position >= N_CTX:
                    assert (
                        not seen[at][member].any()
                        and (places[at][member] < 0).all()
                        and not ends[at][member].any()
                    )
                    continue
                used = np.flatnonzero(words[at][member])
                assert ends[at][member][1] == (used[-1] + 1 if len(used) else 0)
                new = np.concatenate([k[row, position, head], v[row, position, head]])
                slots = (begins[at][:, None] + np.arange(32))[seen[at][member].astype(bool)]
                keys = np.concatenate([cache[row, slots, member], new[None][: ends[at][member][0]]])
                score = keys[:, :KEY] @ q[row, position, head] * KEY**-0.5
                weight = np.exp(score - score.max(initial=0))
                if len(keys):
                    out[at][head] = weight @ keys[:, KEY:] / weight.sum()
                for place in places[at][member]:
                    if place >= 0:
                        cache[row, place, member] = new
    return out


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_slots_read_give_full_attention(mode):
    how = pattern(mode)
    heads = how["heads"]
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, N_CTX, heads, dim)) for dim in (KEY, KEY, VALUE))
    flat = [tf.constant(x.reshape(1, N_CTX, -1), tf.float32) for x in (q, k, v)]
    want = attention_impl(*flat, **how).numpy().reshape(N_CTX, heads, VALUE)
    step = DecodeStep(1, N_CTX, heads * KEY, heads * VALUE, **how)
    found = followed(step, q, k, v, np.arange(N_CTX, dtype=np.int32)[:, None])
    np.testing.assert_allclose(found[:, 0], want, atol=2e-6)


def test_rows_at_positions_of_their_own_and_beyond_the_last():
    how = pattern("fixed")
    heads = how["heads"]
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(2, N_CTX, heads, dim)) for dim in (KEY, KEY, VALUE))
    flat = [tf.constant(x.reshape(2, N_CTX, -1), tf.float32) for x in (q, k, v)]
    want = attention_impl(*flat, **how).numpy().reshape(2, N_CTX, heads, VALUE)
    step = DecodeStep(2, N_CTX, heads * KEY, heads * VALUE, **how)
    late = np.maximum(np.arange(N_CTX + 5) - 5, 0)  # the second row is five positions behind
    positions = np.stack([np.arange(N_CTX + 5), late], axis=1).astype(np.int32)
    found = followed(step, q, k, v, positions, jit=True)
    np.testing.assert_allclose(found[:N_CTX, 0], want[0], atol=2e-6)
    np.testing.assert_allclose(found[5:, 1], want[1], atol=2e-6)
