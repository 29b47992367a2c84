"""The next token of each row of the batch, and the first stream of the position behind it."""

import triton
import triton.language as tl
from triton.language.random import philox

from .dependent import begin, wait


@triton.jit
def step_draw(
    logits, done, integers, reals, table, streams, tokens, x,
    BATCH: tl.constexpr, COUNT: tl.constexpr, COUNT_PAD: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr, RAGGED: tl.constexpr, CUT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """integers: seed, the first draw's number, top_k; reals: temperature, top_p. Temperature 0: the likeliest token.

    A token is the argmax of logits / temperature - log(-log u), u in (0, 1) from Philox of (row, token) and the draw's
    number: a sample of the softmax (Gumbel).
    """
    begin(PDL)
    row = tl.program_id(0)
    n = tl.arange(0, COUNT_PAD)
    w = tl.arange(0, WIDTH_PAD)
    wait(PDL)
    step = tl.load(done + row)
    given = tl.load(logits + row * COUNT + n, mask=n < COUNT, other=float("-inf"))
    temperature = tl.load(reals)
    scaled = given / tl.maximum(temperature, 1e-6)
    if CUT:
        scaled = _likeliest(
            scaled, logits + row * COUNT, temperature, tl.load(integers + 2), tl.load(reals + 1), COUNT
        )
    number = tl.load(integers + 1) + step
    zero = tl.zeros([COUNT_PAD], tl.int32)
    bits, _, _, _ = philox(tl.load(integers), row * COUNT_PAD + n, zero + number, zero, zero)
    # 23 bits and a half: a float32 between 0 and 1, never either
    uniform = ((bits >> 9).to(tl.int32).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    noisy = tl.where(temperature > 0, scaled - tl.log(-tl.log(uniform)), given)
    token = tl.argmax(noisy, 0)
    tl.store(tokens + step * BATCH + row, token)
    behind = step + 1
    stream = streams + (behind * BATCH + row if RAGGED else behind) * WIDTH
    first = tl.load(table + token * WIDTH + w, mask=w < WIDTH, other=0.0)
    first += tl.load(stream + w, mask=w < WIDTH, other=0.0)
    tl.store(x + row * WIDTH + w, first.to(x.dtype.element_ty), mask=w < WIDTH)
    tl.store(done + row, behind)


@triton.jit
def _likeliest(scaled, logits, temperature, top_k, top_p, COUNT: tl.constexpr, TILE: tl.constexpr = 32):
    """scaled, -inf where more than top_k are larger, or where those that are have a probability of top_p among them.

    As a token's larger ones are compared by value, tokens as likely as the last one that stays do so too; where top_k
    cuts between equals, the probabilities are those of the first top_k.
    """
    n = tl.arange(0, scaled.shape[0])
    top = tl.max(scaled, 0)
    larger = tl.zeros(scaled.shape, tl.int32)  # how many are
    before = tl.zeros(scaled.shape, tl.int32)  # those, and equal ones of a lower number
    above = tl.zeros(scaled.shape, tl.float32)  # the chance of those larger, times the sum of all
    for first in tl.static_range(0, COUNT, TILE):
        other = first + tl.arange(0, TILE)
        given = tl.load(logits + other, mask=other < COUNT, other=float("-inf")) / tl.maximum(
            temperature, 1e-6
        )
        is_larger = given[None, :] > scaled[:, None]
        is_before = is_larger | ((given[None, :] == scaled[:, None]) & (other[None, :] < n[:, None]))
        larger += tl.sum(is_larger.to(tl.int32), 1)
        before += tl.sum(is_before.to(tl.int32), 1)
        above += tl.sum(tl.where(is_larger, tl.exp(given - top)[None, :], 0.0), 1)
    total = tl.sum(tl.where(before < top_k, tl.exp(scaled - top), 0.0), 0)
    enough = tl.where(top_p >= 1, 2.0, top_p)  # no chance is above 2
    kept = (larger < top_k) & ((above / total < enough) | (above == 0))
    return tl.where(kept, scaled, float("-inf"))
