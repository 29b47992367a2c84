"""Attention as one TensorFlow operation with its gradient, and what it means in plain TensorFlow."""
