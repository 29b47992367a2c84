"""attention.py on an object that has only what OpenAI's BlocksparseTransformer has."""

from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf

from sparse_attention import attention, attention_impl, blocksparse_attention_impl

OPENAI = "query_key_op masked_softmax weight_value_op".split()


class OpenAITransformer:
    """OpenAI's arguments and methods: dense layouts, a plain callback, as many blocks in each head; NumPy inside."""

    made: ClassVar[list] = []

    def __init__(self, layout, block_size=64, heads=None, mask_callback=None, name=None):
        assert isinstance(layout, np.ndarray) and layout.dtype == bool
        layout = layout[None] if layout.ndim == 2 else layout
        assert len(layout) in (1, heads) and len(set(layout.sum((1, 2)))) == 1
        self.heads, self.block_size = heads, block_size
        time = layout.shape[1] * block_size
        self.mask = np.zeros([heads, time, time], bool)
        for head in range(heads):
            lut_head = head % len(layout)
            for number, (query, key) in enumerate(zip(*np.nonzero(layout[lut_head]))):
                mask = mask_callback((block_size, block_size), lut_head, query, key, number)
                assert mask.shape == (block_size, block_size) and mask.dtype == bool
                rows, columns = (slice(i * block_size, (i + 1) * block_size) for i in (query, key))
                self.mask[head, rows, columns] = mask
        self.made.append(self)

    def query_key_op(self, q, k):
        return tf.matmul(
            attention.split_heads(q, self.heads), attention.split_heads(k, self.heads), transpose_b=True
        )

    def masked_softmax(self, x, scale=1.0):
        weights = tf.nn.softmax(tf.where(self.mask, x * scale, -1e9))
        return tf.where(self.mask, weights, 0.0)

    def weight_value_op(self, w, v):
        return attention.merge_heads(tf.matmul(w, attention.split_heads(v, self.heads)))


@pytest.fixture
def openai(monkeypatch):
    monkeypatch.setattr(attention, "BlocksparseTransformer", OpenAITransformer)
    monkeypatch.setattr(OpenAITransformer, "made", [])
    return OpenAITransformer


CASES = {
    # attn_mode, sizes, heads of each object made
    "all": ("all", {}, [4]),
    "local": ("local", {"local_attn_ctx": 16}, [4]),
    "strided": ("strided", {"local_attn_ctx": 8}, [4]),
    "chunk": ("chunk", {"local_attn_ctx": 16}, [4]),
    "fixed": ("fixed", {"local_attn_ctx": 16, "num_verts": 2, "vertsize": 1}, [2, 2]),
    "summary": ("summary", {"local_attn_ctx": 16, "num_verts": 1, "vertsize": 1}, [4]),
    "merged": ("local+strided", {"local_attn_ctx": 8}, [4]),
    "per head": (("local", "strided", "local+strided"), {"local_attn_ctx": 8}, [2, 1, 1]),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_three_steps_of_openais_object_equal_dense_attention(openai, name, recompute):
    attn_mode, sizes, heads = CASES[name]
    random = np.random.default_rng(0)
    q, k, v = (tf.constant(random.standard_normal((2, 64, width)), tf.float32) for width in (32, 32, 64))

    def run(attend):
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            out = attend(q, k, v, 4, attn_mode, blocksize=8, recompute=recompute, **sizes)
            loss = tf.reduce_sum(out**2)
        return out, *tape.gradient(loss, [q, k, v])

    expected, got = run(attention_impl), run(blocksparse_attention_impl)
    for want, have in zip(expected, got):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)
    assert [made.heads for made in openai.made] == heads * (2 if recompute else 1)


def test_the_stand_in_has_openais_methods_only():
    assert [name for name in vars(OpenAITransformer) if not name.startswith("_") and name != "made"] == OPENAI


def test_a_program_of_openais_kind_runs_on_our_object(monkeypatch):
    """get_blocksparse_obj, the three steps, and strided_transpose, called as OpenAI's attention.py calls them."""
    random = np.random.default_rng(0)
    q, k, v = (tf.constant(random.standard_normal((2, 64, 32)), tf.float32) for _ in "qkv")
    for mode, context in (("all", None), ("local", 16), ("strided", 8), ("fixed", 32)):
        bst = attention.get_blocksparse_obj(64, 4, mode, 8, context)
        x = [q, k, v]
        if mode == "strided":
            x = [attention.strided_transpose(each, 64, context, 8) for each in x]
        w = bst.query_key_op(x[0], x[1])
        w = bst.masked_softmax(w, scale=8**-0.5)
        a = bst.weight_value_op(w, x[2])
        if mode == "strided":
            a = tf.reshape(tf.transpose(tf.reshape(a, [2, 8, 8, 32]), [0, 2, 1, 3]), [2, 64, 32])
        sizes = {"local_attn_ctx": context, "blocksize": 8, "num_verts": 4, "vertsize": 1}
        np.testing.assert_allclose(a, attention_impl(q, k, v, 4, mode, **sizes), rtol=1e-4, atol=1e-5)


def test_the_callback_of_openais_arguments_masks_what_the_layout_leaves_open():
    causal = np.tri(4, dtype=bool)
    for mode in ("all", "strided", "fixed"):
        callback = attention.get_callback(mode, 8)
        np.testing.assert_array_equal(callback((4, 4), 0, 2, 2, 0), causal)
        np.testing.assert_array_equal(callback((4, 4), 0, 2, 1, 0), np.ones([4, 4], bool))
    window = attention.get_callback("local", 4)
    np.testing.assert_array_equal(window((4, 4), 0, 2, 1, 0), ~causal)
    columns = attention.get_callback("summary", 8, blocksize=2, num_verts=2, vertsize=1)
    assert columns((4, 4), 1, 5, 1, 0).astype(int).tolist() == [[1, 1, 0, 0]] * 4
    several = columns.batch((4, 4), 1, np.array([5, 5]), np.array([0, 1]), np.array([0, 1]))
    assert (
        several.shape == (2, 4, 4)
        and not several[0].any()
        and several[1, 0].tolist() == [True, True, False, False]
    )
