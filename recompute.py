"""`@recomputable`: forget what a function computed inside, and compute it again in the backward pass.

Section 5.4 of the paper. The contract, and what holds it, is in blocksparse/recomputation.
"""

from __future__ import annotations

from collections.abc import Callable

from blocksparse.recomputation import decorate


def recomputable(function: Callable | str) -> Callable:
    """Decorator: `f(..., recompute=True)` keeps nothing but what f took from outside for the backward pass.

    recompute is False unless given. Use it bare, or with a name as in OpenAI's code: `@recomputable` or
    `@recomputable("f")`. Arguments and results may be nested, and need not be tensors. The gradient is the one
    without recomputation, in every way of running, or an error says why not: blocksparse.recomputation has the whole
    contract, and the difference to blocksparse.recomputable.

    Raises:
        ValueError: at the call where f makes or assigns a variable, or draws statefully inside control flow or a
            tf.function; when the gradient is taken, where f did something else the second time, or a variable that
            a tf.function inside reads was updated.
        TypeError: f has an argument of its own named recompute.
        LookupError: the gradient is differentiated again, or the function in forward mode.
    """
    if not callable(function):
        return recomputable
    return decorate(function, makes_variables=False)
