"""attention_grad: the gradient of attention, from what attention returned."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import from_mask

HEADS, TIME, BLOCK, WIDTH = 2, 64, 16, 32


def causal(query, key):
    return key <= query


def near(query, key):
    return (key <= query) & (query - key < 16)


def far(query, key):
    return (query - key >= 16) & ((query - key) % 8 == 0)


def tensors(dtype, seed=1):
    return [
        tf.cast(tf.random.stateless_normal([3, TIME, WIDTH], [seed, number]), dtype) for number in range(4)
    ]


def objects(*patterns):
    return [from_mask(sees, TIME, TIME, HEADS, BLOCK) for sees in patterns]


@pytest.mark.parametrize(
    ("kernels", "jit", "dtype"),
    [
        ("auto", None, "float32"),
        ("auto", False, "float16"),
        ("auto", True, "float32"),
        ("reference", None, "float32"),
        ("reference", False, "float16"),
    ],
)
@pytest.mark.parametrize("patterns", [(causal,), (near, far)])
def test_it_has_the_bits_of_the_gradient_of_attention(monkeypatch, kernels, jit, patterns, dtype):
    """jit None: eagerly."""
    monkeypatch.setenv("BLOCKSPARSE_KERNELS", kernels)
    first, *others = objects(*patterns)
    joined = [(other, 1) for other in others]
    q, k, v, dout = tensors(dtype)

    def both(q, k, v, dout):
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            out, lse = first.attention(q, k, v, scale=0.5, with_lse=True, joined=joined)
        want = tape.gradient(out, [q, k, v], output_gradients=dout)
        return want, first.attention_grad(q, k, v, out, lse, dout, scale=0.5, joined=joined)

    run = both if jit is None else tf.function(both, jit_compile=jit)
    for want, came in zip(*run(q, k, v, dout), strict=True):
        if kernels == "reference":
            np.testing.assert_allclose(want, came, rtol=1e-2 if dtype == "float16" else 1e-4, atol=1e-3)
        else:
            np.testing.assert_array_equal(want, came)


def test_rows_without_keys_have_no_gradient():
    (bst,) = objects(lambda query, key: key + 32 <= query)
    q, k, v, dout = tensors("float32")
    out, lse = bst.attention(q, k, v, with_lse=True)
    dq, dk, dv = bst.attention_grad(q, k, v, out, lse, dout)
    assert not np.any(dq[:, :32]) and np.all(np.isfinite(dq))
    assert np.all(np.isfinite(dk)) and np.all(np.isfinite(dv))


def test_it_cannot_be_differentiated_again():
    (bst,) = objects(causal)
    q, k, v, dout = tensors("float32")
    with tf.GradientTape() as tape:
        tape.watch(q)
        out, lse = bst.attention(q, k, v, with_lse=True)
        dq, *_ = bst.attention_grad(q, k, v, out, lse, dout)
    with pytest.raises(LookupError, match="no second derivative"):
        tape.gradient(dq, q)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"lse": lambda lse: lse[:, :1]}, ValueError, r"lse is float32 \(3, 1, 64\); give attention's own"),
        ({"lse": lambda lse: tf.cast(lse, tf.float16)}, ValueError, "lse is float16"),
        ({"dout": lambda dout: dout[:, :32]}, ValueError, r"dout has shape \(3, 32, 32\)"),
        (
            {"dout": lambda dout: dout[:, :, :16]},
            ValueError,
            "out has 32, dout has 16, v has 32 as its width",
        ),
        ({"dout": lambda dout: tf.cast(dout, tf.float16)}, TypeError, "dout is float16 and q float32"),
        ({"out": lambda out: out[:2]}, ValueError, "out has 2"),
        ({"scale": lambda _: tf.constant(0.5)}, TypeError, "scale is .*; it has to be a number here"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, text):
    (bst,) = objects(causal)
    q, k, v, dout = tensors("float32")
    out, lse = bst.attention(q, k, v, with_lse=True)
    arguments = dict(q=q, k=k, v=v, out=out, lse=lse, dout=dout, scale=0.5)
    for name, changed in change.items():
        arguments[name] = changed(arguments[name])
    with pytest.raises(error, match=text):
        bst.attention_grad(**arguments)
