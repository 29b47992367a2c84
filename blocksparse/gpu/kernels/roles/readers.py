"""The queries of all heads that read one key head, as the key pass gathers them."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..primitives import tensor_rows


@gluon.jit
def reader_rows(walk, work, j, count, shape, layout: gl.constexpr):
    """primitives.reader_rows: of a key head's column tile j of queries, with several readers."""
    n = gl.arange(0, shape.N, layout=layout)
    place = j * shape.N
    granules = walk.columns + work.start * (shape.TILE // shape.GRANULE) + place // shape.GRANULE
    own = walk.other_rows // shape.GRANULE
    heads = walk.heads * shape.GROUP
    rows, places = n * 0, n * 0
    if shape.N // shape.GRANULE <= 4:
        for run in gl.static_range(max(1, shape.N // shape.GRANULE)):
            number = gl.load(granules + run, mask=j < count, other=0)
            reader = number // own
            first = tensor_rows(
                (number - reader * own) * shape.GRANULE, walk.other_rows, work.stride, shape.PERMUTED
            )
            rows = gl.where(n >= run * shape.GRANULE, first * heads + reader, rows)
            places = gl.where(n >= run * shape.GRANULE, first + reader * walk.other_time, places)
    else:
        number = gl.load(granules + n // shape.GRANULE, mask=n * 0 + j < count, other=0)
        reader = number // own
        first = tensor_rows(
            (number - reader * own) * shape.GRANULE, walk.other_rows, work.stride, shape.PERMUTED
        )
        rows, places = first * heads + reader, first + reader * walk.other_time
    within = (place % shape.GRANULE + n) % shape.GRANULE
    if shape.PERMUTED:
        within *= work.stride
    rows, places = rows + within * heads, places + within
    if shape.BOUNDED:
        exist = rows < walk.other_time * heads
        rows, places = gl.where(exist, rows, -1), gl.where(exist, places, -1)
    return rows, places
