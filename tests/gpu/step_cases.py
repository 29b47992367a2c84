"""Decoding steps of small random models as arrays, and their meaning in NumPy. Imports no Triton, no TensorFlow."""

from dataclasses import dataclass

import numpy as np

from blocksparse.gpu.steps import Group, StepKey

TYPES = {"f16": np.float16, "f32": np.float32}
EPSILON = 1e-5
SMALL = dict(dtype="f32", batch=1, width=24, heads=2, key=16, value=16, hidden=40, count=20)
SMALL |= dict(ragged=False, cut=False, groups=(Group(2, 81, 3, 2),), capability=80)


def key_of(**changed):
    return StepKey(**SMALL | changed)


CASES = {
    "one row": key_of(),
    "one row, float16": key_of(dtype="f16"),
    "one row, value wider": key_of(key=8, value=24, heads=4, groups=(Group(4, 150, 5, 1),)),
    "three rows": key_of(batch=3),
    "three rows at positions of their own, float16": key_of(batch=3, dtype="f16", ragged=True),
    "thirty-three rows": key_of(batch=33, width=16, heads=1, hidden=16, groups=(Group(1, 33, 1, 1),)),
    "two caches": key_of(heads=3, groups=(Group(2, 81, 3, 2), Group(1, 65, 2, 1))),
    "cut draws": key_of(batch=2, cut=True),
}


@dataclass
class Model:
    """layers[i]: its arrays by the kernels' names; groups[g]: tables; rest: what all layers share."""

    key: StepKey
    steps: int
    layers: list
    groups: list
    rest: dict


def model_of(key, layers=1, steps=2, temperature=0.0, seed=0):
    rng = np.random.default_rng(seed)
    dtype = TYPES[key.dtype]

    def normal(*shape, scale=1.0, dtype=dtype):
        return rng.normal(size=shape, scale=scale).astype(dtype)

    def linear(name, depth, columns):
        return {f"{name}.weight": normal(columns, depth, scale=depth**-0.5), f"{name}.bias": normal(columns)}

    def norm(name):
        numbers = 1 + normal(key.width, scale=0.2), normal(key.width, scale=0.2), [EPSILON]
        return {f"{name}.norm": np.concatenate(numbers).astype(np.float32)}

    inside, attended = key.heads * (2 * key.key + key.value), key.heads * key.value
    each = [
        linear("qkv", key.width, inside)
        | linear("project", attended, key.width)
        | linear("expand", key.width, key.hidden)
        | linear("contract", key.hidden, key.width)
        | norm("qkv")
        | norm("expand")
        | {
            f"cache{number}": np.resize(
                normal(997), (key.batch, group.slots, group.members, key.key + key.value)
            )
            for number, group in enumerate(key.groups)
        }
        for _ in range(layers)
    ]
    rows = key.batch if key.ragged else 1
    rest = norm("logits") | {"logits.weight": normal(key.count, key.width, scale=3 * key.width**-0.5)}
    rest |= dict(x=normal(key.batch, key.width), done=np.zeros(key.batch, np.int32))
    rest |= dict(table=normal(key.count, key.width, dtype=np.float32))
    rest |= dict(streams=normal(steps + 1, rows, key.width, dtype=np.float32))
    rest |= dict(integers=np.array([seed, 7, 5], np.int32), reals=np.array([temperature, 0.8], np.float32))
    rest |= dict(tokens=np.full((steps, key.batch), -1, np.int32))
    heads = rng.permutation(key.heads).astype(np.int32)
    ends = np.cumsum([group.members for group in key.groups])
    groups = [
        tables(rng, group, steps, rows) | dict(members=np.sort(part))
        for group, part in zip(key.groups, np.split(heads, ends[:-1]), strict=True)
    ]
    return Model(key, steps, each, groups, rest)


def tables(rng, group, steps, rows):
    """Slots seen and written at random: a place is never among those seen, as the kernels want it."""
    whole = -(-group.slots // 32)
    begins = np.stack([32 * rng.permutation(whole)[: group.words] for _ in range(steps * rows)])
    if group.words > whole:
        raise ValueError("more words than there are slots to see")
    places = np.stack(
        [rng.permutation(group.slots)[: group.places] for _ in range(steps * rows * group.members)]
    ).reshape(steps, rows, group.members, group.places)
    places = np.where(rng.random(places.shape) < 0.3, -1, places)
    slots = begins.reshape(steps, rows, 1, -1, 1) + np.arange(32)
    seen = (rng.random((steps, rows, group.members, group.words, 32)) < 0.4) & (slots < group.slots)
    seen &= (slots[..., None] != places[:, :, :, None, None, :]).all(-1)
    words = (seen.astype(np.int64) << np.arange(32)).sum(-1).astype(np.uint32).view(np.int32)
    words[..., 1:] *= (
        rng.random((steps, rows, group.members, 1)) < 0.8
    )  # else nothing behind the first is seen
    own = rng.random((steps, rows, group.members)) < 0.7
    last = np.where(words == 0, 0, np.arange(1, group.words + 1)).max(-1)
    return dict(
        words=words,
        begins=begins.reshape(steps, rows, -1).astype(np.int32),
        places=places.astype(np.int32),
        ends=np.stack([own, last], -1).astype(np.int32),
    )


def arrays_of(model, layer, name):
    """Every array that a launch of this name may be given, by the kernels' argument names."""
    own = layer if layer is not None else model.rest
    prefix = f"{name}."
    found = {part.removeprefix(prefix): array for part, array in own.items() if part.startswith(prefix)}
    if name.startswith("attention"):
        number = int(name.removeprefix("attention"))
        found = model.groups[number] | dict(cache=layer[f"cache{number}"])
    return model.rest | found


def order(model):
    """(layer or None, name) of the launches of one step."""
    attention = [f"attention{number}" for number in range(len(model.key.groups))]
    for layer in model.layers:
        for name in ("qkv", *attention, "project", "expand", "contract"):
            yield layer, name
    yield None, "logits"
    yield None, "draw"


def expected(model):
    """What the arrays of `model`, changed in place, hold after all steps; also the logits of every step."""
    key, rest, logits = model.key, model.rest, []
    for step in range(model.steps):
        for layer in model.layers:
            _block(model, layer, step)
        given = (
            _normal(rest["x"], rest["logits.norm"], key).astype(np.float64)
            @ rest["logits.weight"].astype(np.float64).T
        )
        logits.append(given.astype(TYPES[key.dtype]).astype(np.float32))
        token = logits[-1].argmax(-1)
        rest["tokens"][step] = token
        rest["x"][:] = rest["table"][token] + rest["streams"][step + 1]
        rest["done"] += 1
    return np.stack(logits)


def _block(model, layer, step):
    key, x = model.key, model.rest["x"]
    dtype = TYPES[key.dtype]

    def linear(given, name):
        product = given.astype(np.float64) @ layer[f"{name}.weight"].astype(np.float64).T
        return product + layer[f"{name}.bias"]

    qkv = linear(_normal(x, layer["qkv.norm"], key), "qkv").astype(dtype)
    x[:] = x + linear(_attend(model, layer, step, qkv).astype(dtype), "project")
    inner = linear(_normal(x, layer["expand.norm"], key), "expand")
    x[:] = x + linear((inner / (1 + np.exp(-1.702 * inner))).astype(dtype), "contract")


def _normal(x, norm, key):
    gamma, beta, epsilon = norm[: key.width], norm[key.width : -1], norm[-1]
    x = x.astype(np.float64)
    x = x - x.mean(-1, keepdims=True)
    return (x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gamma + beta).astype(TYPES[key.dtype])


def _attend(model, layer, step, qkv):
    key = model.key
    cut = [key.heads * key.key, 2 * key.heads * key.key]
    q, k, v = (part.reshape(key.batch, key.heads, -1) for part in np.split(qkv, cut, axis=1))
    out = np.zeros(v.shape)
    for number, group in enumerate(model.groups):
        cache = layer[f"cache{number}"]
        for row in range(key.batch):
            at = step, row if key.ragged else 0
            for member, head in enumerate(group["members"]):
                words = group["words"][at][member].view(np.uint32)
                seen = (words[:, None] >> np.arange(32, dtype=np.uint32)) & 1
                slots = (group["begins"][at][:, None] + np.arange(32))[seen.astype(bool)]
                rows = cache[row, slots, member]
                new = np.concatenate([k[row, head], v[row, head]])
                if group["ends"][at][member][0]:
                    rows = np.concatenate([rows, new[None]])
                for place in group["places"][at][member]:
                    if place >= 0:
                        cache[row, place, member] = new
                if len(rows):
                    score = rows[:, : key.key].astype(np.float64) @ q[row, head] * key.key**-0.5
                    weight = np.exp(score - score.max())
                    out[row, head] = weight @ rows[:, key.key :] / weight.sum()
    return out.reshape(key.batch, -1)
