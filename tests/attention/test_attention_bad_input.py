"""What does not fit is refused at the call, by a sentence that names it, what is wanted and what works."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import BlocksparseTransformer
from sparse_attention import (
    attention_impl,
    blocksparse_attention_impl,
    get_blocksparse_obj,
    get_callback,
    strided_transpose,
)
from sparse_attention.decode import DecodeStep
from sparse_attention.layers import SparseSelfAttention


def zeros(*shape, dtype=tf.float32):
    return tf.zeros(shape, dtype)


def attend(attn_mode="all", q=None, k=None, v=None, heads=2, function=blocksparse_attention_impl, **sizes):
    q = zeros(1, 64, 16) if q is None else q
    k = q if k is None else k
    v = k if v is None else v
    return function(q, k, v, heads, attn_mode, **{"blocksize": 8, **sizes})


def fixed_object(attn_mode="all", local_attn_ctx=None, n_ctx=64, heads=2, **sizes):
    """Of OpenAI's function, which alone has OpenAI's restrictions."""
    return get_blocksparse_obj(n_ctx, heads, attn_mode, 8, local_attn_ctx, **sizes)


def unknown(*shape, **sizes):
    """A call while tracing, where a shape may be unknown."""

    def call():
        spec = tf.TensorSpec(shape, tf.float32)
        tf.function(lambda q: attend(q=q, **sizes), autograph=False).get_concrete_function(spec)

    return call


def rectangular(**segments):
    q, k = zeros(1, 8, 16), zeros(1, 16, 16)
    return mask_object(layout=np.ones([1, 2], bool)).attention(q, k, k, **segments)


def mask_object(callback=None, layout=None):
    layout = np.ones([2, 2], bool) if layout is None else layout
    return BlocksparseTransformer(layout, block_size=8, heads=2, mask_callback=callback)


FIXED = {"attn_mode": "fixed", "local_attn_ctx": 32, "num_verts": 2, "vertsize": 1}

CASES = [
    # the tensors
    (
        lambda: attend(q=zeros(64, 16)),
        ValueError,
        "q has shape (64, 16); it has to be [batch, time, heads * head_dim]",
    ),
    (
        lambda: attend(q=tf.ragged.constant([[[1.0], [2.0]], [[3.0]]])),
        TypeError,
        "q is a RaggedTensor; it has to be a tensor or array [batch, time, heads * head_dim]",
    ),
    (
        lambda: attend(q=zeros(1, 64, 16, dtype=tf.float64)),
        TypeError,
        "q has dtype float64; cast it to float16, bfloat16 or float32 (nearest: float32)",
    ),
    (
        lambda: attend(v=zeros(1, 64, 16, dtype=tf.float16)),
        TypeError,
        "v has dtype float16 and q float32; cast them to one dtype",
    ),
    (
        lambda: attend(v=zeros(1, 64, 15)),
        ValueError,
        "heads=2 does not divide the width of v, 15; nearest width: 16",
    ),
    (
        lambda: attend(k=zeros(1, 64, 32)),
        ValueError,
        "k has width 32 and q 16; they have to be equal",
    ),
    (
        lambda: attend(v=zeros(1, 32, 16)),
        ValueError,
        "v has shape (1, 32, 16) and q (1, 64, 16); batch and time have to be equal",
    ),
    (lambda: attend(heads=0), ValueError, "heads=0; it has to be at least 1"),
    (lambda: attend(heads=2.0), TypeError, "heads is 2.0; it has to be a positive int"),
    (
        lambda: DecodeStep(1, 64, 16, 15, heads=2),
        ValueError,
        "heads=2 does not divide value_width, 15; nearest width: 16",
    ),
    (
        lambda: DecodeStep(1, 64, 16, 16, heads=2, causal=False),
        ValueError,
        "causal=False lets queries see keys ahead, which a DecodeStep has not got when it is asked: give causal=True, "
        "or run blocksparse_attention_impl over all positions",
    ),
    (lambda: SparseSelfAttention(heads=0), ValueError, "heads=0; it has to be at least 1"),
    (lambda: get_blocksparse_obj(64, "2", "all", 8), TypeError, "heads is '2'; it has to be a positive int"),
    (unknown(None, None, 16, max_time=0), ValueError, "max_time=0; it has to be at least 1"),
    (unknown(None, None, 16, max_time=None), TypeError, "max_time is None; it has to be a positive int"),
    (
        lambda: SparseSelfAttention(attn_mode="all"),
        TypeError,
        "heads is missing; give the number of heads, as heads or as num_heads",
    ),
    (
        lambda: SparseSelfAttention(4, num_heads=2),
        ValueError,
        "heads=4, but num_heads 2; they mean the same: give one of them",
    ),
    (
        lambda: SparseSelfAttention(num_heads=4, key_dim=8, key_width=16),
        ValueError,
        "key_width=16, but heads * key_dim, 4 * 8 = 32; they mean the same: give one of them",
    ),
    (lambda: SparseSelfAttention(4, key_dim=0), ValueError, "key_dim=0; it has to be at least 1"),
    (lambda: SparseSelfAttention(4, max_time=-1), ValueError, "max_time=-1; it has to be at least 1"),
    (
        lambda: SparseSelfAttention(4, dropout=0.1),
        ValueError,
        "dropout=0.1 would drop weights of the attention, which nothing here stores: leave it out, and drop of the "
        "layer's output, by keras.layers.Dropout or SparseTransformerBlock(dropout=...)",
    ),
    (
        unknown(1, 64, None),
        ValueError,
        "q has shape (1, 64, None); its last axis has to be known (tf.ensure_shape sets it)",
    ),
    # segments
    (
        lambda: attend(segment_ids=np.zeros([1, 64])),
        TypeError,
        "segment_ids is float64; cast it to int32",
    ),
    (
        lambda: attend(segment_ids=np.full([1, 64], 2**31), function=attention_impl),
        ValueError,
        "segment_ids holds 2147483648; its numbers have to fit int32",
    ),
    (
        lambda: attend(segment_ids=np.full([1, 64], 2**64 - 1, np.uint64)),
        ValueError,
        "segment_ids holds 9223372036854775807; its numbers have to fit int32",
    ),
    (
        tf.function(lambda: attend(segment_ids=tf.zeros([1, 64], tf.int64) + tf.size([0], tf.int64))),
        TypeError,
        "segment_ids is int64, of numbers unknown here; cast it to int32",
    ),
    (
        lambda: attend(segment_ids=np.zeros([64], np.int32)),
        ValueError,
        "segment_ids has shape (64,); it has to be [batch, time] = (1, 64)",
    ),
    (
        lambda: attend(segment_ids=np.zeros([2, 64], np.int32), function=attention_impl),
        ValueError,
        "segment_ids has shape (2, 64); it has to be [batch, time] = (1, 64)",
    ),
    (
        lambda: attend(segment_ids=(np.zeros([1, 64], np.int32), np.zeros([1, 32], np.int32))),
        ValueError,
        "segment_ids[1] has shape (1, 32); it has to be [batch, time] = (1, 64)",
    ),
    (
        lambda: attend(segment_ids=(np.zeros([1, 64], np.int32),) * 3),
        ValueError,
        "segment_ids is a tuple of 3; give one tensor [batch, time], or the pair (of the queries, of the keys)",
    ),
    (
        lambda: attend(segment_ids=(np.zeros([1, 64], np.int32), None)),
        TypeError,
        "segment_ids[1] is of type NoneType; give a dense tensor, an array or a number",
    ),
    (
        lambda: attend(lengths=np.array([[32]], np.int32)),
        ValueError,
        "lengths has shape (1, 1); it has to be [batch] = (1,)",
    ),
    (lambda: attend(lengths=[32.0]), TypeError, "lengths is float32; cast it to int32"),
    (
        lambda: rectangular(segment_ids=np.zeros([1, 64], np.int32)),
        ValueError,
        "segment_ids is one tensor, but there are 8 queries and 16 keys: give segment_ids as a pair (of the queries, "
        "of the keys)",
    ),
    (
        lambda: rectangular(lengths=[8]),
        ValueError,
        "lengths is given, but there are 8 queries and 16 keys: give segment_ids as a pair (of the queries, of the "
        "keys)",
    ),
    # heads that share keys
    (
        lambda: attend(kv_heads=3),
        ValueError,
        "kv_heads=3 does not divide heads=2, of which as many have to share each key head; nearest: 2",
    ),
    (lambda: attend(kv_heads=0), ValueError, "kv_heads=0; it has to be at least 1"),
    (lambda: attend(kv_heads=-2), ValueError, "kv_heads=-2; it has to be at least 1"),
    (lambda: attend(kv_heads="2"), TypeError, "kv_heads is '2'; it has to be a positive int"),
    (lambda: attend(kv_heads=True), TypeError, "kv_heads is True; it has to be a positive int"),
    (
        lambda: attend(kv_heads=1, function=attention_impl),
        ValueError,
        "k has width 16 and q 16; with heads=2 and kv_heads=1 k needs 8",
    ),
    (
        lambda: attend(kv_heads=2, heads=4, k=zeros(1, 64, 8), v=zeros(1, 64, 15)),
        ValueError,
        "kv_heads=2 does not divide the width of v, 15; nearest width: 16",
    ),
    (
        lambda: SparseSelfAttention(heads=4, kv_heads=8),
        ValueError,
        "kv_heads=8 does not divide heads=4, of which as many have to share each key head; nearest: 4",
    ),
    (
        lambda: DecodeStep(1, 64, 16, 16, heads=2, kv_heads=4),
        ValueError,
        "kv_heads=4 does not divide heads=2, of which as many have to share each key head; nearest: 2",
    ),
    (
        lambda: DecodeStep(1, 64, 16, 16, heads=2, kv_heads=1)(zeros(1, 16), zeros(1, 16), zeros(1, 8), 0),
        ValueError,
        "k has shape (1, 16); this DecodeStep takes [batch, width] = [1, 8]",
    ),
    # the mode
    (
        lambda: attend("locl", local_attn_ctx=8),
        ValueError,
        "attn_mode='locl' has no mode 'locl'; use all, local, strided, chunk, previous, summary, fixed, prefix, "
        "or several joined by +; nearest: 'local'",
    ),
    (
        lambda: attend(("all", "local+fxed"), local_attn_ctx=8),
        ValueError,
        "attn_mode=('all', 'local+fxed') has no mode 'fxed'; use all, local, strided, chunk, previous, summary, fixed, "
        "prefix, or several joined by +; nearest: 'fixed'",
    ),
    (
        lambda: attend("all", causal=0),
        TypeError,
        "causal is 0; give True, or False for queries that look ahead as well",
    ),
    (
        lambda: get_callback("strided", 8, causal="no"),
        TypeError,
        "causal is 'no'; give True, or False for queries that look ahead as well",
    ),
    (
        lambda: attend(3),
        TypeError,
        "attn_mode is 3; give one mode, such as 'local', or a tuple with one a head",
    ),
    (
        lambda: attend(()),
        TypeError,
        "attn_mode is (); give one mode, such as 'local', or a tuple with one a head",
    ),
    # its sizes
    (
        lambda: attend("local"),
        ValueError,
        "local_attn_ctx is None, but attn_mode='local' needs it: give a positive int",
    ),
    (lambda: attend("local", local_attn_ctx=0), ValueError, "local_attn_ctx=0; it has to be at least 1"),
    (
        lambda: attend("local", local_attn_ctx=8.0),
        TypeError,
        "local_attn_ctx is 8.0; it has to be a positive int",
    ),
    (
        lambda: attend(blocksize=24),
        ValueError,
        "blocksize=24 is not offered; use one of (8, 16, 32, 64, 128) (nearest: 16)",
    ),
    (
        lambda: attend(blocksize=None),
        ValueError,
        "blocksize is None, but attn_mode='all' needs it: give a positive int",
    ),
    (
        lambda: fixed_object(n_ctx=60),
        ValueError,
        "n_ctx=60 is no multiple of blocksize=8; nearest n_ctx: 64",
    ),
    (
        lambda: fixed_object("strided", local_attn_ctx=5),
        ValueError,
        "local_attn_ctx=5 does not divide n_ctx / blocksize = 64 / 8, as 'strided' needs; nearest: 4",
    ),
    (
        lambda: fixed_object("local+strided", local_attn_ctx=16),
        ValueError,
        "local_attn_ctx=16 does not divide n_ctx / blocksize = 64 / 8, as 'strided' needs; nearest: 8",
    ),
    (
        lambda: strided_transpose(zeros(1, 64, 16), 64, 16, 8),
        ValueError,
        "local_attn_ctx=16 does not divide n_ctx / blocksize = 64 / 8, as 'strided' needs; nearest: 8",
    ),
    (
        lambda: fixed_object("chunk", local_attn_ctx=20),
        ValueError,
        "local_attn_ctx=20 is no multiple of blocksize=8, which attn_mode='chunk' wants; nearest: 16",
    ),
    (
        lambda: fixed_object(**{**FIXED, "local_attn_ctx": 30}),
        ValueError,
        "local_attn_ctx=30 is no multiple of blocksize=8, which attn_mode='fixed' wants; nearest: 32",
    ),
    (
        lambda: attend("fixed", local_attn_ctx=32, vertsize=1),
        ValueError,
        "num_verts is None, but attn_mode='fixed' needs it: give a positive int",
    ),
    (
        lambda: attend("summary", local_attn_ctx=32, num_verts=1),
        ValueError,
        "vertsize is None, but attn_mode='summary' needs it: give a positive int",
    ),
    (
        lambda: fixed_object(**{**FIXED, "vertsize": 3, "num_verts": 1}),
        ValueError,
        "vertsize=3 does not divide local_attn_ctx / blocksize = 4; nearest: 2",
    ),
    (
        lambda: attend(**{**FIXED, "num_verts": 8}, heads=8),
        ValueError,
        "num_verts=8 groups of vertsize * blocksize = 1 * 8 columns do not fit a chunk of local_attn_ctx=32; "
        "nearest: num_verts=4",
    ),
    (
        lambda: attend(**{**FIXED, "vertsize": 8}),
        ValueError,
        "num_verts=2 groups of vertsize * blocksize = 8 * 8 columns do not fit a chunk of local_attn_ctx=32; "
        "nearest: local_attn_ctx=128",
    ),
    (
        lambda: fixed_object(**{**FIXED, "num_verts": 4}),
        ValueError,
        "num_verts=4 does not divide heads=2; nearest: 2",
    ),
    (
        lambda: get_blocksparse_obj(64, 2, "strided", 8, 3),
        ValueError,
        "local_attn_ctx=3 does not divide n_ctx / blocksize = 64 / 8, as 'strided' needs; nearest: 2",
    ),
    # the dense implementation refuses what has no meaning
    (
        lambda: attend("fixed", function=attention_impl, local_attn_ctx=32),
        ValueError,
        "num_verts is None, but attn_mode='fixed' needs it: give a positive int",
    ),
    (
        lambda: attend(function=attention_impl, heads=3),
        ValueError,
        "heads=3 does not divide the width of q, 16; nearest width: 15",
    ),
]


@pytest.mark.parametrize("call, error, text", CASES, ids=[text[:50] for _, _, text in CASES])
def test_what_does_not_fit_is_refused_in_words(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


OBJECTS = [
    (
        lambda: mask_object(lambda *_: np.ones([8, 4], bool)),
        ValueError,
        ("mask_callback returned bool [8, 4]", "it has to return a NumPy array of bool [8, 8]"),
    ),
    (
        lambda: mask_object(lambda *_: np.ones([8, 8])),
        TypeError,
        ("mask_callback returned float64 [8, 8]", "it has to return a NumPy array of bool [8, 8]"),
    ),
    (
        lambda: mask_object(layout=np.ones([3, 2, 2], bool)),
        ValueError,
        ("heads=2 does not fit a layout of 3 heads", "use heads=3"),
    ),
    (
        lambda: mask_object().attention(*[zeros(1, 64, 16)] * 3),
        ValueError,
        ("q has shape (1, 64, 16)", "it has to be [batch, 16, 2 heads * d]", "2 blocks of 8"),
    ),
]


@pytest.mark.parametrize("call, error, texts", OBJECTS, ids=[texts[0] for _, _, texts in OBJECTS])
def test_what_does_not_fit_an_object_is_refused_in_words(call, error, texts):
    with pytest.raises(error) as caught:
        call()
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "sizes",
    [
        {"attn_mode": "local", "local_attn_ctx": 5},
        {"attn_mode": "local", "local_attn_ctx": 1000},
        {"attn_mode": "chunk", "local_attn_ctx": 24},  # the last chunk is shorter
        {
            "attn_mode": "fixed",
            "local_attn_ctx": 128,
            "num_verts": 2,
            "vertsize": 1,
        },  # longer than the context
        {"attn_mode": "all", "local_attn_ctx": None},
        {"attn_mode": "strided", "local_attn_ctx": np.int64(8)},
        {"attn_mode": ["local", "all"], "local_attn_ctx": 8},
    ],
)
def test_what_openais_code_accepts_is_accepted(sizes):
    assert attend(**sizes).shape == (1, 64, 16)


def test_arrays_are_taken_for_tensors():
    array = np.zeros([1, 64, 16], np.float32)
    assert attend(q=array, k=array, v=array).dtype == tf.float32
