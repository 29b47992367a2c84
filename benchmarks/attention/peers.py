"""Times PyTorch's attentions on the GPU benchmark's cases; processes without TensorFlow.

    python benchmarks/attention/peers.py OUT.json [--start FILE] [--cases NAME ...] [--peers NAME ...]

FlexAttention (compiled; blocks of 128 and 64; strided gets inputs already transposed; documents in its mask, key heads
by enable_gqa) on every pattern; on causal attention also scaled_dot_product_attention's cuDNN and flash kernels and,
where it is installed, FlashAttention-4, with their deterministic backward passes; on local windows FlashAttention-4
and, where its frontend is installed, cuDNN. Each gets its inputs contiguous, in the layout it likes.
They compile and are checked against float64 side by side, in many processes; then one at a time is timed with events
while all others sleep. --start: timing waits until FILE exists, and what is not ready by then is left out.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import sys
import time
from multiprocessing import connection, get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import without_tensorflow  # noqa: F401  first

from benchmarks.attention import cudnn_window  # isort: skip
from benchmarks.common import cases, timing, truth  # isort: skip

REPEATS = 20
PATIENCE = 600  # seconds to compile and check
FLUSHES = 16  # of 256 MB: 1.4 ms, in which the host queues the step, whatever Python does meanwhile


def processes(names, peers):
    """The jobs (case, peer, option) of each process; the option is a block size, or whether to be deterministic."""
    for case in cases.GPU:
        if case.name.startswith("audio") or (names and case.name not in names):
            continue  # audio is asked for only as the ratio of two sizes of this library
        groups = [[("flex", 128)], [("flex", 64)]]
        if case.attn_mode == "all" and case.documents is None:
            groups.append([(peer, option) for peer in ("cudnn", "flash") for option in (False, True)])
        if (
            case.attn_mode in ("all", "local")
            and case.documents is None
            and importlib.util.find_spec("flash_attn") is not None
        ):
            groups.append(
                [("fa4", option) for option in ((False, True) if case.attn_mode == "all" else (False,))]
            )
        if case.attn_mode == "local" and importlib.util.find_spec("cudnn") is not None:
            groups.append([("cudnn", False)])
        for group in groups:
            chosen = [(case, peer, option) for peer, option in group if not peers or peer in peers]
            if chosen:
                yield chosen


def mask_of(case):
    """mask_mod, of integers only; strided in transposed order, where it is block-diagonal."""
    pattern = pattern_of(case)
    if case.documents is None:
        return pattern
    return lambda b, h, q, k: pattern(b, h, q, k) & (q // case.documents == k // case.documents)


def pattern_of(case):
    if case.attn_mode == "blocks":
        sees = case.sees(0)
        return lambda b, h, q, k: sees(q, k)
    if case.attn_mode == "all":
        return lambda b, h, q, k: q >= k
    if case.attn_mode == "local":
        window = case.local_attn_ctx
        return lambda b, h, q, k: (q >= k) & (q - k < window)
    if case.attn_mode == "strided":
        run = case.time // case.local_attn_ctx
        return lambda b, h, q, k: (q >= k) & (q // run == k // run)
    if case.attn_mode == "local+strided":
        window = case.local_attn_ctx
        return lambda b, h, q, k: (q >= k) & ((q - k < window) | ((q - k) % window == 0))
    size, width, groups = case.local_attn_ctx, case.width, case.num_verts

    def fixed(b, h, q, k):
        last = size - h % groups * width
        return (q >= k) & ((q // size == k // size) | ((k % size >= last - width) & (k % size < last)))

    return fixed


def block_mask(torch, case, block, device="cuda"):
    """create_block_mask's result, some rows at a time: whole it needs gigabytes, or minutes of compilation."""
    from torch.nn.attention.flex_attention import BlockMask

    heads = torch.arange(case.heads if case.attn_mode == "fixed" else 1, device=device)[:, None, None]
    columns = torch.arange(case.time, device=device)
    counts = []
    for rows in columns.split(8 * block):
        seen = mask_of(case)(0, heads, rows[:, None], columns).expand(len(heads), -1, -1)
        counts.append(seen.unflatten(2, (-1, block)).unflatten(1, (-1, block)).sum((2, 4)))
    count = torch.cat(counts, 1)[None]
    listed = []
    for chosen in ((count > 0) & (count < block**2), count == block**2):
        listed.append(chosen.sum(-1, dtype=torch.int32))
        listed.append(chosen.int().argsort(dim=-1, descending=True, stable=True).int())
    lengths = (case.time, case.time)
    return BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=block, mask_mod=mask_of(case), seq_lengths=lengths)


def flex(torch, case, block):
    from torch.nn.attention.flex_attention import flex_attention

    if block == 64:
        tiles_of_64()
    mask, compiled = block_mask(torch, case, block), torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=case.group > 1)


def tiles_of_64():
    """From head_dim 64 on FlexAttention's own tiles are too large for blocks of 64: these are its tiles below that."""
    from torch._inductor.template_heuristics import triton

    chosen = triton.CUDAConfigHeuristic
    chosen.get_flex_attn_fwd_configs = lambda *_: [triton.FlexConfig(64, 64, 3, 4)]
    chosen.get_flex_attn_bwd_configs = lambda *_: [triton.FlexBwDConfig(64, 64, 64, 64, 3, 4)]


def dense(torch, peer):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[peer]

    def attend(q, k, v):
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


def flash_attention_4(case, deterministic):
    from flash_attn.cute import flash_attn_func

    window = (case.local_attn_ctx - 1, 0) if case.attn_mode == "local" else (None, None)

    def attend(q, k, v):
        out = flash_attn_func(q, k, v, causal=True, window_size=window, deterministic=deterministic)
        return out[0] if isinstance(out, tuple) else out

    return attend


def attention_of(torch, case, peer, option):
    """f(q, k, v) -> out."""
    if peer == "flex":
        return flex(torch, case, option)
    if peer == "cudnn" and case.attn_mode == "local":
        return cudnn_window.attention(torch, case.local_attn_ctx)
    return flash_attention_4(case, option) if peer == "fa4" else dense(torch, peer)


def relative_error(torch, case, got, q, k, v, dout):
    """The largest relative error of out, dq, dk, dv on the last key head of the last batch row.

    q, dout, and of got = out, dq, dk, dv the first two: [group, time, head_dim], of the heads that read it.
    """
    position, errors, sums = torch.arange(case.time, device="cuda"), [], dict(dk=0, dv=0)
    q, k, v, dout, *got = (x.double() for x in (q, k, v, dout, *got))
    for number in range(case.group):
        head = torch.tensor(case.heads - case.group + number)
        sees = functools.partial(
            mask_of(case), 0, head
        )  # as FlexAttention was given it; for strided in that order
        want = truth.attention(torch, sees, position, q[number], k, v, dout[number])
        results = dict(out=got[0][number], dq=got[1][number])
        errors.append(truth.relative_error(torch, results, want))
        sums = {name: sums[name] + want[name] for name in sums}
    return max(*errors, truth.relative_error(torch, dict(dk=got[2], dv=got[3]), sums))


def prepare(torch, case, peer, option):
    """(relative error, forward, backward), both compiled and run once."""
    torch.use_deterministic_algorithms(option is True, warn_only=True)
    torch.manual_seed(0)
    time_first = peer == "fa4"

    def draw(heads):
        shape = (case.batch, case.time, heads) if time_first else (case.batch, heads, case.time)
        return torch.randn(*shape, case.dim, device="cuda").half()

    counts = case.heads, case.heads // case.group, case.heads // case.group
    inputs, dout = [draw(heads).requires_grad_() for heads in counts], draw(case.heads)
    attention = attention_of(torch, case, peer, option)
    out = attention(*inputs)

    def backward():
        return torch.autograd.grad(out, inputs, dout, retain_graph=True)

    def last(x, count):
        """[count, time, head_dim]: the last heads of the last batch row."""
        return (x[-1].transpose(0, 1) if time_first else x[-1])[-count:]

    with torch.no_grad():
        dq, dk, dv = backward()
        q, k, v = inputs
        got = *(last(x, case.group) for x in (out, dq)), *(last(x, 1)[0] for x in (dk, dv))
        of_keys = (last(x, 1)[0] for x in (k, v))
        error = relative_error(torch, case, got, last(q, case.group), *of_keys, last(dout, case.group))
    torch.cuda.empty_cache()
    return error, lambda: attention(*inputs), backward  # as in training: forward keeps what backward needs


def median_ms(torch, step, scratch):
    def flush():
        for _ in range(FLUSHES):
            scratch.zero_()

    return timing.median(timing.events(torch, step, REPEATS, flush, warm_up=3))


def work(jobs, pipe):
    """One process: compiles and checks its jobs and reports each; then times those that it is told to."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # there are enough processes
    import torch
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # the backward pass runs many times on one forward pass
    torch.set_num_threads(1)
    steps = {}
    for case, peer, option in jobs:
        row, began = dict(case=case.name, peer=peer, option=option), time.monotonic()
        try:
            row["relative_error"], *steps[peer, option] = prepare(torch, case, peer, option)
            if not row["relative_error"] < truth.TOLERANCE["float16"]:
                row["error"] = "wrong answer, not timed"
        except Exception as error:  # a peer that cannot run a case is a result
            row["error"] = f"{type(error).__name__}: {error}"[:600]
        pipe.send(row | dict(compile_s=round(time.monotonic() - began, 1)))
    while True:
        peer, option = pipe.recv()
        torch.use_deterministic_algorithms(option is True, warn_only=True)
        scratch = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
        forward_ms, backward_ms = (median_ms(torch, step, scratch) for step in steps[peer, option])
        pipe.send(dict(forward_ms=forward_ms, backward_ms=backward_ms))
        del scratch
        torch.cuda.empty_cache()


def copy_rate(pipe):
    """One process: bytes that a copy of 4 GB reads and writes in a millisecond."""
    import torch

    x, y = (torch.empty(4 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    ms = timing.median(timing.events(torch, lambda: y.copy_(x), REPEATS, lambda: None, warm_up=3))
    pipe.send(dict(bytes_per_ms=2 * x.numel() / ms))


def measure(everything, start, out):
    """Rows of all jobs, printed and written as they come."""
    context, rows, running = get_context("spawn"), {}, {}

    def begun(function, *more):
        pipe, theirs = context.Pipe()
        process = context.Process(target=function, args=(*more, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends with the process
        return pipe, process

    for jobs in everything:
        pipe, process = begun(work, jobs)
        running[pipe] = process, [(case.name, peer, option) for case, peer, option in jobs]

    def put(job, values):
        rows[job] = rows.get(job, dict(zip(("case", "peer", "option"), job, strict=True))) | values
        print(json.dumps(rows[job]), flush=True)
        out.write_text(json.dumps(list(rows.values()), indent=1))

    def receive(pipe, job):
        try:
            put(job, pipe.recv())
        except EOFError:
            put(job, dict(error="its process ended"))

    print(f"{sum(map(len, everything))} to compile", flush=True)
    compiling, deadline = (
        {pipe: list(jobs) for pipe, (_, jobs) in running.items()},
        time.monotonic() + PATIENCE,
    )
    while (compiling and time.monotonic() < deadline) if start is None else not start.exists():
        for pipe in connection.wait(list(compiling), timeout=1):
            receive(pipe, compiling[pipe].pop(0))
            if not compiling[pipe]:
                del compiling[pipe]
    for pipe, jobs in compiling.items():
        running.pop(pipe)[0].kill()
        for job in jobs:
            put(job, dict(error="not ready in time"))
    for pipe, (_, jobs) in running.items():
        for job in jobs:
            if "error" not in rows[job]:
                pipe.send(job[1:])
                receive(pipe, job)
    pipe, _ = begun(copy_rate)
    receive(pipe, ("copy", "the card", None))
    return list(rows.values())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="time when this file exists")
    parser.add_argument("--cases", nargs="+", default=[])
    parser.add_argument("--peers", nargs="+", default=[], help="of flex, cudnn, flash, fa4")
    args = parser.parse_args()
    rows = measure(list(processes(args.cases, args.peers)), args.start, args.out)
    print(f"{sum('forward_ms' in row for row in rows)} of {len(rows)} timed")


if __name__ == "__main__":
    main()
