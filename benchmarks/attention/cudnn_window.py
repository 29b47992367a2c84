"""cuDNN's attention over a causal window, by its own frontend, nvidia-cudnn-frontend: PyTorch's call has no window."""

from __future__ import annotations


def attention(torch, window: int):
    """f(q, k, v) of [batch, heads, time, head_dim], float16, whose gradient is cuDNN's; a query sees `window` keys."""
    import cudnn

    handle, graphs = cudnn.create_handle(), {}
    kinds = dict(io_data_type=cudnn.data_type.HALF, intermediate_data_type=cudnn.data_type.FLOAT)
    kinds |= dict(compute_data_type=cudnn.data_type.FLOAT, handle=handle)
    band = dict(diagonal_alignment=cudnn.diagonal_alignment.TOP_LEFT, diagonal_band_left_bound=window)
    band |= dict(diagonal_band_right_bound=0)

    def run(name, build, given, results):
        """Runs a graph, made once: build(graph, tensors) -> what stands for the results."""
        given = [x.detach() for x in given]
        if name not in graphs:
            graph = cudnn.pygraph(**kinds)
            inputs = [graph.tensor_like(x) for x in given]
            outputs = build(graph, inputs)
            for output, like in zip(outputs, results, strict=True):
                output.set_output(True).set_dim(list(like.shape)).set_stride(list(like.stride()))
                if like.dtype == torch.float32:
                    output.set_data_type(cudnn.data_type.FLOAT)
            graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            space = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device="cuda")
            graphs[name] = graph, inputs, outputs, space
        graph, inputs, outputs, space = graphs[name]
        cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
        pairs = dict(zip((*inputs, *outputs), (*given, *results), strict=True))
        graph.execute(pairs, space, handle=handle)

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            out = torch.empty_like(q)
            stats = torch.empty((*q.shape[:3], 1), dtype=torch.float32, device=q.device)
            scale = dict(attn_scale=q.shape[-1] ** -0.5, is_inference=False, name="sdpa")

            def build(graph, tensors):
                return graph.sdpa(**dict(zip("qkv", tensors, strict=True)), **scale, **band)

            run("forward", build, (q, k, v), (out, stats))
            ctx.save_for_backward(q, k, v, out, stats)
            return out

        @staticmethod
        def backward(ctx, dout):
            q, k, v, out, stats = ctx.saved_tensors
            scale = dict(attn_scale=q.shape[-1] ** -0.5, name="sdpa_backward")
            gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

            def build(graph, tensors):
                names = ("q", "k", "v", "o", "dO", "stats")
                return graph.sdpa_backward(**dict(zip(names, tensors, strict=True)), **scale, **band)

            run("backward", build, (q, k, v, out, dout.contiguous(), stats), gradients)
            return gradients

    return Attention.apply
