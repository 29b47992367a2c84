"""Runs the kernels of decoding steps in Triton's interpreter and prints one JSON line a case. Imports no TensorFlow.

python step_interpreter.py [NAME ...]
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import interpreter_cases as common
import numpy as np
import step_cases as cases

from blocksparse.gpu import steps
from blocksparse.gpu.kernels import steps as kernels


def run(model):
    """All steps; the logits of each."""
    launches = {launch.name: launch for launch in steps.launches(model.key)}
    buffers = scratch(model)
    found = []
    for _ in range(model.steps):
        for layer, name in cases.order(model):
            arrays = cases.arrays_of(model, layer, name) | {
                name: array for name, array in buffers.items() if name not in model.rest
            }
            launch(launches[name], arrays)
        found.append(buffers["logits"].copy())
    return np.stack(found)


def scratch(model):
    """What `steps.temps` names, filled with what is no number."""
    shaped = dict(logits=(model.key.batch, -1))
    found = {}
    for name, size in steps.temps(model.key):
        dtype = np.float32 if name in ("parts", "sums", "logits") else cases.TYPES[model.key.dtype]
        found[name] = np.full(int(size), 0xFF, np.uint8).view(dtype).reshape(shaped.get(name, -1))
    return found


def launch(how, arrays):
    pointers = [name for name, kind in how.signature.items() if kind != "constexpr"]
    names = dict(zip(pointers, (word.removeprefix("p:") for word in how.args), strict=True))
    arrays = arrays | {name: np.zeros(1, np.float32) for name in names.values() if name not in arrays}
    given = {
        argument: common.Tensor(arrays[name], arrays[name].dtype.name) for argument, name in names.items()
    }
    common.interpreter._interpreter = common.Guard(common.MEMORY, given)
    getattr(kernels, how.function)[tuple(map(int, how.grid))](**given, **how.constexprs)


def error(found, wanted):
    """The largest difference, over the largest number wanted."""
    return float(np.abs(found.astype(np.float64) - wanted).max() / np.abs(wanted).max())


def compare(key):
    model, wanted = cases.model_of(key), cases.model_of(key)
    logits, wanted_logits = run(model), cases.expected(wanted)
    caches = [
        (layer[name], other[name])
        for layer, other in zip(model.layers, wanted.layers, strict=True)
        for name in layer
        if name.startswith("cache")
    ]
    return dict(
        logits=error(logits, wanted_logits),
        cache=max(error(*pair) for pair in caches),
        tokens=int((model.rest["tokens"] != wanted.rest["tokens"]).sum()),
        x=error(model.rest["x"], wanted.rest["x"]),
    )


def frequencies(cut):
    """How often each token was drawn over many draws of one row of logits, at temperature 0.7."""
    key = cases.key_of(cut=cut, count=12)
    draws = 150
    model = cases.model_of(key, layers=0, steps=draws, temperature=0.7)
    (how,) = (each for each in steps.launches(key) if each.name == "draw")
    logits = np.random.default_rng(3).normal(size=(1, key.count), scale=1.5).astype(np.float32)
    for _ in range(draws):
        launch(how, model.rest | dict(logits=logits))
    counts = np.bincount(model.rest["tokens"][:, 0], minlength=key.count)
    top_k, top_p = (
        (int(model.rest["integers"][2]), float(model.rest["reals"][1])) if cut else (key.count, 1.0)
    )
    return dict(logits=logits[0].tolist(), counts=counts.tolist(), top_k=top_k, top_p=top_p, temperature=0.7)


def main(names):
    for name, key in cases.CASES.items():
        if not names or name in names:
            print(json.dumps(dict(case=name, errors=compare(key))), flush=True)
    for cut in (False, True):
        if not names or "draws" in names:
            print(json.dumps(dict(case="draws, cut" if cut else "draws", **frequencies(cut))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
