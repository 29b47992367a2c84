"""What the ops refuse, and in which words."""

import zlib

import numpy as np
import pytest
import tensorflow as tf
from cpu_cases import Case, causal, library, needs_kernels
from layouts import dense

from blocksparse.plan.blob import Word, digest

pytestmark = needs_kernels
Q, PLAN = tf.zeros((2, 64, 32)), Case(dense(4, heads=2), mask=causal(64)).plan
SHORTER, FOUR_HEADS = Case(dense(2, heads=2)).plan, Case(dense(4, heads=4)).plan
HEADER = 64


def call(q=Q, k=Q, v=Q, plan=PLAN, segments=(), heads=2):
    return library.blocksparse_attention(q, k, v, plan, segments, heads=heads, scale=1.0)


def numbers(*shape):
    return tf.zeros(shape, tf.int32)


def joined(*plans):
    return library.blocksparse_joined_attention(Q, Q, Q, plans, segments=[], heads=2, scale=1.0)


def joined_gradient(*plans):
    sums = tf.zeros((2, 2, 64))
    return library.blocksparse_joined_attention_grad(
        Q, Q, Q, Q, sums, Q, sums, plans, segments=[], heads=2, scale=1.0
    )


def gradient(out=Q, lse=None, dout=Q, dlse=None, segments=()):
    lse = tf.zeros((2, 2, 64)) if lse is None else lse
    dlse = tf.zeros((2, 2, 64)) if dlse is None else dlse
    return library.blocksparse_attention_grad(
        Q, Q, Q, out, lse, dout, dlse, PLAN, segments, heads=2, scale=1.0
    )


CALLS = {
    "q has shape [2,80,32]; it has to be [2,64,32]": lambda: call(q=tf.zeros((2, 80, 32))),
    "k has shape [2,80,32]; it has to be [2,64,32]": lambda: call(k=tf.zeros((2, 80, 32))),
    "v has shape [2,64,32]; it has to be [2,48,32]": lambda: call(k=Q[:, :48]),
    "v has shape [1,64,32]; it has to be [2,64,32]": lambda: call(v=Q[:1]),
    "q, k and v have to be [batch, time, width]": lambda: call(q=Q[0]),
    "plan has to be a vector": lambda: call(plan=PLAN[None]),
    "heads is 4 but the plan has 2": lambda: call(heads=4),
    "q is 23 wide; its width has to be a multiple of the 2 heads": lambda: call(
        q=Q[:, :, :23], k=Q[:, :, :23]
    ),
    "v is 0 wide; its width has to be a multiple of the 2 heads": lambda: call(v=Q[:, :, :0]),
    "out has shape [2,48,32]; it has to be [2,64,32]": lambda: gradient(out=Q[:, :48]),
    "lse has shape [2,64]; it has to be [2,2,64]": lambda: gradient(lse=tf.zeros((2, 64))),
    "dout has shape [1,64,32]; it has to be [2,64,32]": lambda: gradient(dout=Q[:1]),
    "dlse has shape [2,1,64]; it has to be [2,2,64]": lambda: gradient(dlse=tf.zeros((2, 1, 64))),
    "q has shape [2,64,32]; it has to be [2,32,32]": lambda: joined(PLAN, SHORTER),
    "heads is 2 but the plan has 4": lambda: joined(PLAN, FOUR_HEADS),
    "64 int32 or more, not 10": lambda: joined(PLAN, PLAN, PLAN[:10]),
    "the queries' segments has shape [2,48]; it has to be [2,64]": lambda: call(
        segments=[numbers(2, 48), numbers(2, 64)]
    ),
    "the keys' segments has shape [1,64]; it has to be [2,64]": lambda: call(
        segments=[numbers(2, 64), numbers(1, 64)]
    ),
    "the keys' segments has shape [2,64,1]; it has to be [2,64]": lambda: gradient(
        segments=[numbers(2, 64), numbers(2, 64, 1)]
    ),
    "segments have to be none, or those of queries and of keys": lambda: call(segments=[numbers(2, 64)]),
    "the recorded size has to be its own": lambda: joined_gradient(PLAN, PLAN[:-4]),
}


@pytest.mark.parametrize("message", CALLS)
def test_bad_calls(message):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        CALLS[message]()
    assert message in error.value.message


def damaged(word, value, relative_to=None):
    """The plan with one word changed (of the array whose offset header word `relative_to` holds), rehashed."""
    plan = PLAN.copy()
    plan[word if relative_to is None else plan[relative_to] + word] = value
    plan[Word.HASH : Word.LENGTH] = digest(plan)
    return plan


DAMAGE = {
    "the magic number and version 1": damaged(0, 7),
    "its own, ": damaged(6, 100),
    "times, heads and distinct heads has to be positive": damaged(7, 0),
    "by_query tile has to be 16, 32, 64 or 128": damaged(16, 48),
    "by_query tile has to be 16, 32, 64 or 128, or of 192 rows": damaged(17, 192),
    "by_key.granule has to be a multiple of 8 that divides both tile sizes": damaged(34, 12),
    "by_query.columns has to be inside the blob": damaged(55, 1 << 30),
    "head_index has to be 0 to": damaged(0, 9, 48),
    "order has to be a divisor of both times": damaged(0, 3, 49),
    "by_query.head_tiles has to be rising": damaged(0, 1, 50),
    "by_query.rows has to be tiles that hold every row of a head once": damaged(0, 1, 51),
    "by_query.row_count has to be granules of 1 to 64 rows": damaged(0, 65, 52),
    "by_query.offset has to be rising": damaged(1, 99, 53),
    "by_query.full has to be at most the tiles visited": damaged(0, 99, 54),
    "by_query.columns has to be 0 to 3": damaged(0, 4, 55),
    "by_query.mask has to be 0 to": damaged(0, 99, 56),
    "by_key.columns has to be 0 to 3": damaged(0, -1, 63),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_plans(message):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        call(plan=DAMAGE[message])
    assert "the plan is damaged" in error.value.message and message in error.value.message


def test_a_damaged_plan_under_the_hash_of_a_good_one():
    """Also where it lies in the good one's memory: that is no reason to believe it."""
    plan = PLAN.copy()
    call(plan=plan)
    plan[plan[Word.QUERY_ARRAYS + 5]] += 1
    for same in (plan, tf.constant(plan)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="its hash has to be the content's"):
            call(plan=same)
    np.testing.assert_array_equal(call(plan=PLAN).out, call().out)


def test_a_plan_too_short_for_its_header():
    with pytest.raises(tf.errors.InvalidArgumentError, match="64 int32 or more, not 10"):
        call(plan=PLAN[:10])


def test_a_joined_call_has_a_pass_at_least():
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        joined()


def test_shapes_of_joined_passes_are_inferred():
    with tf.Graph().as_default():
        q, k, v = (tf.compat.v1.placeholder(tf.float32, (None, 64, width)) for width in (32, 32, 48))
        plans = [tf.constant(PLAN)] * 2
        out, lse = library.blocksparse_joined_attention(q, k, v, plans, segments=[], heads=2, scale=1.0)
        assert out.shape.as_list() == [None, 64, 48] and lse.shape.as_list() == [None, 2, 64]
        gradients = library.blocksparse_joined_attention_grad(
            q, k, v, out, lse, out, lse, plans, segments=[], heads=2, scale=1.0
        )
        assert [x.shape.as_list() for x in gradients] == [[None, 64, 32], [None, 64, 32], [None, 64, 48]]


def test_shapes_are_inferred_and_checked_in_a_graph():
    with tf.Graph().as_default():
        plan = tf.constant(PLAN)

        def build(q=(None, 64, 32), k=(None, 64, 32), v=(None, 64, 48), segments=()):
            q, k, v = (tf.compat.v1.placeholder(tf.float32, shape) for shape in (q, k, v))
            segments = [tf.compat.v1.placeholder(tf.int32, shape) for shape in segments]
            return library.blocksparse_attention(q, k, v, plan, segments, heads=2, scale=1.0)

        out, lse = build()
        assert out.shape.as_list() == [None, 64, 48] and lse.shape.as_list() == [None, 2, 64]
        for wrong in (
            dict(q=(64, 32)),
            dict(q=(None, 64, 48)),
            dict(k=(None, 32, 32)),
            dict(v=(None, 64, 33)),
            dict(segments=[(None, 64)]),
            dict(segments=[(None, 64), (None, 32)]),
            dict(segments=[(None, 64), (64,)]),
        ):
            with pytest.raises(ValueError):
                build(**wrong)
        with pytest.raises(TypeError):
            library.blocksparse_attention(
                *[tf.zeros((2, 64, 32), tf.float64)] * 3, plan, segments=[], heads=2, scale=1.0
            )


def test_a_compressed_plan_unpacks_once_and_refuses_rubbish():
    words = np.arange(70_000, dtype=np.int32)
    data = zlib.compress(words.tobytes(), 1)
    np.testing.assert_array_equal(library.blocksparse_plan(data=data, length=len(words)), words)
    for wrong in (dict(data=b"rubbish", length=4), dict(data=data, length=len(words) + 1)):
        with pytest.raises(tf.errors.OpError):
            library.blocksparse_plan(**wrong)


# Times 4, the first two wrap to 4 and to 0 bytes; the third asks for 8 GB.
@pytest.mark.parametrize("length", [2**62 + 1, 2**62, 2**31 - 1, 100, 0])
def test_a_compressed_plan_of_another_length_is_refused(length):
    data = zlib.compress(np.arange(101, dtype=np.int32).tobytes())
    with pytest.raises(tf.errors.InvalidArgumentError, match="the compressed plan is damaged: "):
        library.blocksparse_plan(data=data, length=length)
