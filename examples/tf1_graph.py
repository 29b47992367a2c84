"""Sparse attention in a TensorFlow 1 graph: placeholders of unknown batch, a session, recomputation.

    python examples/tf1_graph.py

The gradient the graph gives is checked against a difference quotient along a random direction.
"""

import logging
import sys

from sparse_transformer import command

if __name__ == "__main__":  # before TensorFlow is imported: --help and mistakes need not wait for it
    command.parser(__doc__).parse_args()

with command.quiet():
    import numpy as np
    import tensorflow.compat.v1 as tf

    from sparse_attention import blocksparse_attention_impl

N_CTX, HEADS, N_EMBD, STEP = 256, 4, 128, 1e-2


def build_graph():
    """Returns the placeholders q, k, v and w, the loss sum(w * a), and its gradients for q, k and v."""
    q, k, v, w = (tf.placeholder(tf.float32, [None, N_CTX, N_EMBD], name=name) for name in "qkvw")
    a = blocksparse_attention_impl(
        q, k, v, HEADS, "fixed", local_attn_ctx=64, blocksize=16, num_verts=4, vertsize=1, recompute=True
    )
    loss = tf.reduce_sum(w * a)
    return (q, k, v, w), loss, tf.gradients(loss, [q, k, v])


def main():
    tf.get_logger().setLevel(logging.ERROR)  # disable_v2_behavior warns of itself
    tf.disable_v2_behavior()
    inputs, loss, grads = build_graph()
    with tf.Session() as session:
        for batch in (1, 3):
            rng = np.random.default_rng(batch)
            values = [rng.standard_normal((batch, N_CTX, N_EMBD), np.float32) for _ in inputs]
            directions = [rng.standard_normal(x.shape, np.float32) for x in values[:3]]

            def loss_at(step, values=values, directions=directions):
                moved = [x + step * d for x, d in zip(values[:3], directions, strict=True)]
                return session.run(loss, dict(zip(inputs, [*moved, values[3]], strict=True)))

            found = session.run(grads, dict(zip(inputs, values, strict=True)))
            slope = sum(np.vdot(g, d) for g, d in zip(found, directions, strict=True))
            expected = (loss_at(STEP) - loss_at(-STEP)) / (2 * STEP)
            print(f"batch {batch}: slope by gradient {slope:.3f}, by difference {expected:.3f}")
            if not np.isclose(slope, expected, rtol=1e-2):
                sys.exit("the gradient disagrees with the difference quotient")


if __name__ == "__main__":
    with command.sentence(__file__):
        main()
