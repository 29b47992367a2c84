"""Recomputation: forget what a function computed inside, and compute it again for its gradient.

The contract, in every way of running (eagerly, tf.function, tf.config.run_functions_eagerly, jit_compile, TensorFlow 1
graphs with and without control flow v2, in loops and conditions, Keras layers and fit, saved and imported graphs):
the gradient is the one without recomputation, or an error says what stands in its way.

- The function runs twice in Python: at the call, and when its gradient is taken. Python's and NumPy's global random
  generators, Keras's state and TensorFlow 1's variable scope are the second time what they were the first.
- What random operations drew the first time is what they give the second, so that both runs see the same dropout mask;
  stateless draws cost no memory. So it is with what lookup tables gave. A stateful draw or a lookup in control flow or
  in a tf.function cannot be kept, and is refused at the call (so are tf.py_function, tf.random.gamma and fractional
  pools without a seed, whose gradient would be lost, changes of variables and tables, generators and other iterators
  that Python goes through once, and in a graph a tf.TensorArray from outside).
- What it does in Python besides, it does twice: a list of an outer scope that it appends to has two more once the
  gradient was taken, and so have a Keras layer's losses where it calls add_loss. Lists and dicts among its arguments it
  changes once: the second run gets copies of what they were. `stop_recording` of a tape around it is an error the
  second time: use tf.stop_gradient.
- A variable that was updated in between has its first value the second time. Where a tf.function or a loop inside reads
  it for itself, or eagerly an operation such as `x * variable`, an error names it: a ValueError eagerly, an
  InvalidArgumentError in a graph. XLA runs no assertion: there the gradient is NaN.
- Both runs are compared: the operations that the results depend on with their attributes and constants, the draws, the
  structure of the results. A difference is a ValueError that names it. Functions inside are compared by the kinds of
  their operations, TensorFlow 1's own loops by draws and results alone.
- Gradients reach what the function took wherever it was hidden: captured tensors and variables, attributes, objects
  that tf.nest does not open. What it leaves outside of its results (auxiliary losses, attributes) has its gradient too;
  in a graph, what only that depends on is not recomputed. There a custom gradient which is not linear (clipping) sees
  the gradients of results and of what was left apart. Tapes inside the function work.
- A second or forward-mode derivative of the gradient is a LookupError. A function that ran eagerly
  has no gradient inside a graph, as a vectorized jacobian takes it.
- A graph that was saved and loaded, or imported, has the same gradient, but takes it through the first run, which then
  keeps its activations: the Python function is not there to run again.

| | a TensorFlow 1 graph's tf.get_variable inside |
| --- | --- |
| sparse_attention.recomputable | refused |
| blocksparse.recomputable | makes variables the first time and finds them the second, as in OpenAI's programs |

Eager execution and graphs have a module each.
"""

from .core import decorate as decorate
