"""Every function takes NumPy arrays, and lists of numbers, where OpenAI's took tensors."""

import numpy as np
import pytest
import tensorflow as tf

import blocksparse as bs

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
ONES, LABELS = np.ones(8, np.float32), np.arange(4)
CALLS = {
    "add": lambda x: bs.add(x, x),
    "add_n": lambda x: bs.add_n([x, x]),
    "allreduce": bs.allreduce,
    "bias_relu": lambda x: bs.bias_relu(x, ONES, fast_gelu=True),
    "clip_by_global_norm": lambda x: bs.clip_by_global_norm([x])[0],
    "embedding_lookup": lambda x: bs.embedding_lookup(x, LABELS),
    "fast_gelu": bs.fast_gelu,
    "filter_tensor": lambda x: bs.filter_tensor(x, zero_nans=True),
    "float_cast": lambda x: bs.float_cast(x, tf.float16),
    "gelu": bs.gelu,
    "global_norm": lambda x: bs.global_norm([x]),
    "layer_norm": lambda x: bs.layer_norm(x, ONES, ONES),
    "masked_softmax": lambda x: bs.masked_softmax(x, np.ones((1, 8), np.float32)),
    "masked_top_k_softmax": lambda x: bs.masked_top_k_softmax(x, 2),
    "multiply": lambda x: bs.multiply(x, x),
    "rectified_top_k": lambda x: bs.rectified_top_k(x, 2),
    "relu": bs.relu,
    "scale_tensor": lambda x: bs.scale_tensor(x, 2),
    "softmax": bs.softmax,
    "softmax_cross_entropy": lambda x: bs.softmax_cross_entropy(x, LABELS),
    "swish": bs.swish,
    "top_k": lambda x: bs.top_k(x, 2)[0],
    "transpose_0213": lambda x: bs.transpose_0213(np.reshape(x, (1, 4, 2, 4))),
    "transpose_2d": bs.transpose_2d,
}


@pytest.mark.parametrize("name", CALLS)
def test_arrays_and_lists(name):
    wanted = CALLS[name](tf.constant(X))
    np.testing.assert_array_equal(CALLS[name](X), wanted)
    np.testing.assert_array_equal(CALLS[name](X.tolist()), wanted)
