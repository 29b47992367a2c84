"""GPU kernels in Triton, compiled in a process of their own and launched on TensorFlow's stream."""
