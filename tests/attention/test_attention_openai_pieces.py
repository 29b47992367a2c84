"""attention.py's pieces as OpenAI's own attention.py puts them together: objects, callbacks, three steps."""

import numpy as np
import tensorflow as tf

from sparse_attention import attention, attention_impl


def test_a_program_of_openais_kind_runs_on_our_object():
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
