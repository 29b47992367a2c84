"""Times PyTorch's attentions on the GPU benchmark's cases; a process without TensorFlow.

    python benchmarks/attention_gpu_peers.py OUT.json [PROCESSES [BLOCK ...]]

FlexAttention (compiled; block masks of 64 and 128; strided gets inputs already transposed) on every pattern, and
scaled_dot_product_attention's cuDNN and flash kernels on causal attention, their deterministic backward too. Inputs are
contiguous [batch, heads, time, head_dim], as these peers like them. Everything compiles and is checked against
float32 in parallel; then one at a time is timed with events, the cache flushed before every run.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from multiprocessing import get_context
from pathlib import Path

import without_tensorflow  # noqa: F401  first

import gpu_cases  # isort: skip

REPEATS = 20
PATIENCE = 240  # seconds that the quick wait for the slow before timing begins
TOLERANCE = 2e-2


def jobs(blocks):
    """(case, peer, option) of everything that is timed."""
    for case in gpu_cases.CASES:
        if case.name.startswith("audio"):
            continue  # asked for only as the ratio of two sizes of this library
        for block in blocks:
            yield case, "flex", block
        if case.kind == "all":
            for peer in ("cudnn", "flash"):
                for deterministic in (False, True):
                    yield case, peer, deterministic


def mask_of(case):
    """mask_mod, of integers only; strided in transposed order, where it is block-diagonal."""
    if case.kind == "all":
        return lambda b, h, q, k: q >= k
    if case.kind == "local":
        window = case.numbers[0]
        return lambda b, h, q, k: (q >= k) & (q - k < window)
    if case.kind == "strided":
        run = case.time // case.numbers[0]
        return lambda b, h, q, k: (q >= k) & (q // run == k // run)
    size, width, groups = case.numbers

    def fixed(b, h, q, k):
        last = size - h % groups * width
        return (q >= k) & ((q // size == k // size) | ((k % size >= last - width) & (k % size < last)))

    return fixed


def attention_of(torch, case, peer, option):
    """f(q, k, v) -> out."""
    if peer == "flex":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        heads = case.heads if case.kind == "fixed" else None
        mask = create_block_mask(
            mask_of(case), None, heads, case.time, case.time, device="cuda", BLOCK_SIZE=option, _compile=True
        )
        compiled = torch.compile(flex_attention, dynamic=False)
        tiles = dict(
            fwd_BLOCK_M=64, fwd_BLOCK_N=64, bwd_BLOCK_M1=32, bwd_BLOCK_N1=64, bwd_BLOCK_M2=64, bwd_BLOCK_N2=32
        )
        options = tiles if option == 64 else None  # with blocks of 64 its default tiles are too large
        return lambda q, k, v: compiled(q, k, v, block_mask=mask, kernel_options=options)

    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[peer]

    def dense(q, k, v):
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return dense


def relative_error(torch, case, got, q, k, v, dout):
    """The largest relative error of out, dq, dk, dv on one head, against float32."""
    q, k, v, dout = (x[-1, -1].float() for x in (q, k, v, dout))
    head, rows = torch.tensor(case.heads - 1), torch.arange(case.time, device="cuda")
    out, dq, dk, dv = [], [], torch.zeros_like(k), torch.zeros_like(v)
    for part in rows.split(2048):
        seen = mask_of(case)(0, head, part[:, None], rows[None])
        p = (q[part] @ k.T / math.sqrt(case.dim)).masked_fill(~seen, -math.inf).softmax(1)
        out.append(p @ v)
        ds = p * (dout[part] @ v.T - (out[-1] * dout[part]).sum(1, keepdim=True)) / math.sqrt(case.dim)
        dq.append(ds @ k)
        dk += ds.T @ q[part]
        dv += p.T @ dout[part]
    truth = torch.cat(out), torch.cat(dq), dk, dv
    return max(((x[-1, -1].float() - t).norm() / t.norm()).item() for x, t in zip(got, truth, strict=True))


def median_ms(torch, step, scratch):
    times = []
    for _ in range(REPEATS + 3):
        for _ in range(4):  # the cache is flushed, and long enough for the host to be ahead of the device
            scratch.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in times[3:])[REPEATS // 2]


def work(mine, barrier, turn, results):
    """One process: compiles and checks its jobs, waits for all the others, then times when it is its turn."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # there are enough processes
    import torch
    import torch._dynamo
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # the backward pass runs many times on one forward pass
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    torch.backends.cuda.matmul.allow_tf32 = False
    ready = []
    for case, peer, option in mine:
        row = dict(case=case.name, peer=peer, option=option)
        try:
            torch.use_deterministic_algorithms(peer != "flex" and option, warn_only=True)
            torch.manual_seed(0)
            shape = (case.batch, case.heads, case.time, case.dim)
            q, k, v = (torch.randn(shape, device="cuda").half().requires_grad_() for _ in range(3))
            dout = torch.randn(shape, device="cuda").half()
            attention = attention_of(torch, case, peer, option)
            out = attention(q, k, v)

            def backward(out=out, inputs=(q, k, v), dout=dout):
                return torch.autograd.grad(out, inputs, dout, retain_graph=True)

            def forward(
                attention=attention, inputs=(q, k, v)
            ):  # as in training: one compilation serves both passes
                attention(*inputs)

            print(f"{case.name} {peer} {option} compiled forward", file=sys.stderr, flush=True)
            backward()
            print(f"{case.name} {peer} {option} compiled backward", file=sys.stderr, flush=True)
            with torch.no_grad():
                row["relative_error"] = relative_error(torch, case, (out, *backward()), q, k, v, dout)
            if not row["relative_error"] < TOLERANCE:
                raise RuntimeError(f"wrong: relative error {row['relative_error']}")
            ready.append((row, option, forward, backward))
        except Exception as error:  # a peer that cannot run a case is a result
            results.put(row | dict(error=f"{type(error).__name__}: {error}"[:600]))
    torch.cuda.synchronize()
    try:
        barrier.wait(PATIENCE)
    except threading.BrokenBarrierError:
        results.put(dict(peer="all", error=f"some peer took more than {PATIENCE} s to compile"))
    with turn:
        scratch = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
        for row, option, forward, backward in ready:
            torch.use_deterministic_algorithms(row["peer"] != "flex" and option, warn_only=True)
            row |= dict(
                forward_ms=median_ms(torch, forward, scratch), backward_ms=median_ms(torch, backward, scratch)
            )
            results.put(row)
        del scratch
        torch.cuda.empty_cache()
    results.put(None)


def main(out_file, processes=10, *blocks):
    context, processes = get_context("spawn"), int(processes)
    everything = list(jobs([int(block) for block in blocks] or [128, 64]))
    shares = [everything[i::processes] for i in range(processes)]
    barrier, turn, results = context.Barrier(processes), context.Lock(), context.Queue()
    running = [context.Process(target=work, args=(share, barrier, turn, results)) for share in shares]
    for process in running:
        process.start()
    rows, left = [], processes
    while left:
        row = results.get()
        if row is None:
            left -= 1
            continue
        rows.append(row)
        print(json.dumps(row), flush=True)
        Path(out_file).write_text(json.dumps(rows, indent=1))
    for process in running:
        process.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
