"""The Triton kernels of a decoding step, for processes without TensorFlow; they also run in Triton's interpreter.

A step of a model of pre-norm residual blocks is, for each of its blocks,

    step_map         qkv = norm1(x) W^T + bias
    step_attention   qkv goes into the cache; parts, sums = attention over the slots that the queries see
    step_map         x += attended W^T + bias
    step_map         hidden = gelu(norm2(x) W^T + bias)
    step_map         x += hidden W^T + bias

then step_map, the logits, and step_draw, which draws a token and makes the first stream x of the next position. T is
the dtype of weights and caches; steps are counted from 0 in a call; R is BATCH where rows are at positions of their own
(RAGGED), else 1:

    x, hidden, qkv   T [BATCH, width], [BATCH, hidden], [BATCH, heads * (2 KEY + VALUE)]
    weight, bias     T [OUT, IN], [OUT]
    norm             float32 [2 * width + 1]: gamma, beta, epsilon
    parts, sums      float32 [BATCH, heads, PARTS, VALUE] and [.., 2]: values weighted by exp2(score - top); top, and
                     the sum of the weights, of each part of the keys
    done             int32 [BATCH]   which step this is
    logits           float32 [BATCH, COUNT]
    tokens           int32 [steps, BATCH]
    table, streams   float32 [COUNT, width], [steps + 1, R, width]: the first stream of a token is its row of table plus
                     that of its position

The heads that share a cache, MEMBERS of them, have one launch of step_attention, with

    cache            T [BATCH, SLOTS, MEMBERS, KEY + VALUE]
    members          int32 [MEMBERS]   their numbers
    words            int32 [steps, R, MEMBERS, WORDS]   bit c of word w: slot begins[w] + c is seen, and is not the new
                     key's
    begins           int32 [steps, R, WORDS]
    places           int32 [steps, R, MEMBERS, PLACES]   slots that take the new key, -1 for none
    ends             int32 [steps, R, MEMBERS, 2]   whether the new query sees the new key; how many words there are up
                     to the last one with a bit

Cuts, fixed at compile time: ROWS, COLUMNS, DEPTH of a product's tile, ROWS = 1 without tensor cores; PARTS programs
share a head's keys, TILE slots at a time; PDL, see dependent.py.
"""

from triton.compiler import ASTSource

from .draws import step_draw
from .maps import step_map
from .reads import step_attention

__all__ = ["step_attention", "step_draw", "step_map"]


def source(launch) -> ASTSource:
    """What triton.compile takes for a launch of ../../steps.py."""
    function = globals()[launch.function]
    constants = {(function.arg_names.index(name),): value for name, value in launch.constexprs.items()}
    return ASTSource(function, launch.signature, constants, launch.attrs)
