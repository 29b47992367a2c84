"""The one truth: attention and its gradients in float64, plainly. Nothing is timed before it agrees with this.

It takes arrays of whoever measures, NumPy's, TensorFlow's or PyTorch's, since no process holds all three: `xp` is
`numpy`, `tensorflow.experimental.numpy` or `torch`, of which it uses what they share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType

# The largest relative error, Euclidean, that is still right: some units in the last place of what is multiplied.
TOLERANCE = {"float16": 2e-2, "bfloat16": 2e-2, "tf32": 5e-3, "float32": 1e-5}
_ELEMENTS = 1 << 24  # scores at a time: 128 MB an array, of which about six live at once


def attention(xp: ModuleType, sees: Callable, position, q, k, v, dout, dlse=None) -> dict:
    """One head's {out, lse, delta, dq, dk, dv}.

    out = softmax(q k^T / sqrt(head_dim)) v over the keys seen, lse = log sum exp of the scores, both in float64;
    delta = rowsum(out dout) - dlse, and dq, dk, dv the gradients, given dout and, where lse is a result too, dlse.

    sees(query, key): bool, broadcast over both; every query sees a key. position: int64 [time], 0 to time - 1, on the
    tensors' device. q, k, v, dout: float64 [time, head_dim]. dlse: float64 [time].
    """
    time, dim = q.shape
    scale, rows = dim**-0.5, max(1, _ELEMENTS // time)
    parts: dict[str, list] = {name: [] for name in ("out", "lse", "delta", "dq")}
    dk = dv = 0
    for start in range(0, time, rows):
        part = slice(start, min(start + rows, time))
        seen = sees(position[part][:, None], position[None])
        scores = xp.where(seen, q[part] @ xp.swapaxes(k, 0, 1) * scale, -math.inf)
        top = xp.amax(scores, 1)
        p = xp.exp(scores - top[:, None])
        total = xp.sum(p, 1)
        p = p / total[:, None]
        out = p @ v
        delta = xp.sum(out * dout[part], 1) - (0 if dlse is None else dlse[part])
        ds = p * (dout[part] @ xp.swapaxes(v, 0, 1) - delta[:, None]) * scale
        dk = dk + xp.swapaxes(ds, 0, 1) @ q[part]
        dv = dv + xp.swapaxes(p, 0, 1) @ dout[part]
        for name, rows_of in dict(out=out, lse=top + xp.log(total), delta=delta, dq=ds @ k).items():
            parts[name].append(rows_of)
    return {name: xp.concatenate(each) for name, each in parts.items()} | dict(dk=dk, dv=dv)


def relative_error(xp: ModuleType, got: Mapping, truth: Mapping) -> float:
    """The largest |got - truth| / |truth| of the results in `got`, Euclidean; infinite where one is no number."""
    errors = []
    for name, result in got.items():
        difference, size = (float(xp.sum(x * x)) ** 0.5 for x in (result - truth[name], truth[name]))
        errors.append(difference / size if size else difference)
    return max(error if math.isfinite(error) else math.inf for error in errors)
