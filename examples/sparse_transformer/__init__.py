"""The Sparse Transformer of Child et al. 2019: model, configurations, data, training, sampling, pictures."""
