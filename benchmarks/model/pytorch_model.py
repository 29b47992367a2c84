"""The models of pytorch.py, in PyTorch, and what is timed of them; a process without TensorFlow."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from benchmarks.attention import peers
from benchmarks.common import cases, timing
from benchmarks.common.processes import add, alone

TOKENS = 256  # of the vocabulary


def mask_of(settings):
    """FlexAttention's mask of the configuration's pattern; None where all is seen."""
    mode, heads, positions = settings.layer_modes[0], settings.heads, settings.n_ctx
    if mode == "all":
        return None
    if mode != "fixed":
        sys.exit(f"{settings.name}: here are `all` and `fixed`, not {mode!r}")
    own = {key: value for key, value in settings.pattern.items() if key != "heads"}
    case = cases.Case(settings.name, 1, heads, positions, settings.width // heads, mode, **own)
    sees = peers.mask_of(case)
    return create_block_mask(sees, None, heads, positions, positions, device="cuda", BLOCK_SIZE=128)


class Block(nn.Module):
    def __init__(self, settings, mask):
        super().__init__()
        width, inner = settings.width, int(settings.width * settings.key_ratio)
        hidden = int(settings.width * settings.ff_ratio)
        self.heads, self.mask, self.dropout = settings.heads, mask, settings.dropout
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.maps, self.project = nn.Linear(width, 2 * inner + width), nn.Linear(width, width)
        self.widths = [inner, inner, width]
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def qkv(self, x):
        batch, time_, _ = x.shape
        parts = self.maps(self.norm(x)).split(self.widths, dim=-1)
        return [part.view(batch, time_, self.heads, -1).transpose(1, 2) for part in parts]

    def attend(self, query, key, value):
        if self.mask is None:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return flex_attention(query, key, value, block_mask=self.mask)

    def rest(self, x, attended):
        batch, _, time_, _ = attended.shape
        merged = attended.transpose(1, 2).reshape(batch, time_, -1)
        x = x + functional.dropout(self.project(merged), self.dropout, self.training)
        hidden = self.expand(self.second_norm(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return x + functional.dropout(self.contract(hidden), self.dropout, self.training)

    def forward(self, x):
        return self.rest(x, self.attend(*self.qkv(x)))


class Model(nn.Module):
    def __init__(self, settings):
        super().__init__()
        mask = mask_of(settings)
        self.embedding = nn.Embedding(TOKENS, settings.width)
        self.positions = nn.ParameterList(
            nn.Parameter(0.01 * torch.randn(size, settings.width)) for size in settings.grid
        )
        self.blocks = nn.ModuleList(Block(settings, mask) for _ in range(settings.layers))
        self.norm, self.output = nn.LayerNorm(settings.width), nn.Linear(settings.width, TOKENS)

    def places(self):
        """The sum of the embeddings of row, column (and channel), for every position."""
        total = 0
        for axis, table in enumerate(self.positions):
            shape = [1] * len(self.positions)
            shape[axis] = table.shape[0]
            total = total + table.view(*shape, -1)
        return total.reshape(-1, total.shape[-1])

    def forward(self, tokens, recompute):
        x = (self.embedding(tokens) + self.places()).bfloat16()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.output(self.norm(x))


@contextmanager
def mixed():
    with (
        torch.autocast("cuda", torch.bfloat16),
        sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]),
    ):
        yield


def step(settings, batches, args) -> None:
    model = Model(settings).to("cuda")
    for block in model.blocks:
        block.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)

    def train(tokens):
        with mixed():
            logits = model(tokens, args.recompute == "whole")
            loss = functional.cross_entropy(logits.float().view(-1, TOKENS), tokens.view(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)  # waits for the device

    for batch in batches:
        warm(model.blocks[0], batch, settings)
        try:
            tokens = torch.randint(0, TOKENS, (batch, settings.n_ctx), device="cuda")
            with alone():
                began = time.perf_counter()
                train(tokens)
                compiled = time.perf_counter() - began
                train(tokens)
                torch.cuda.reset_peak_memory_stats()
                seconds = timing.median(timing.wall(partial(train, tokens), args.steps))
                record(
                    args, settings, batch, model, seconds=round(seconds, 4), seconds_first=round(compiled, 2)
                )
        except torch.OutOfMemoryError:
            print(f"{settings.name}: batch {batch} does not fit", file=sys.stderr)
        finally:
            torch.cuda.empty_cache()


def warm(block, batch: int, settings) -> None:
    """Compiles a block: what the others compile is then found on the disk."""
    kind = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
    with mixed():
        block(torch.zeros(batch, settings.n_ctx, settings.width, **kind)).sum().backward()
    block.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()


class Caches:
    """Keys and values of every layer for the whole context, and one step of the model at a position."""

    def __init__(self, model, settings, batch):
        self.model, self.time = model, settings.n_ctx
        block, kind = model.blocks[0], {"device": "cuda", "dtype": torch.bfloat16}
        shapes = [(batch, block.heads, self.time, width // block.heads) for width in block.widths[1:]]
        self.layers = [[torch.zeros(shape, **kind) for shape in shapes] for _ in model.blocks]
        self.places = model.places().to("cuda", torch.bfloat16)

    def step(self, token, position):
        """The next token, drawn, and the next position."""
        x = (self.model.embedding(token) + self.places[position])[:, None]
        visible = (torch.arange(self.time, device="cuda") <= position)[None, None, None]
        for block, (keys, values) in zip(self.model.blocks, self.layers):
            query, key, value = block.qkv(x)
            keys.index_copy_(2, position, key)
            values.index_copy_(2, position, value)
            x = block.rest(x, functional.scaled_dot_product_attention(query, keys, values, attn_mask=visible))
        weights = torch.softmax(self.model.output(self.model.norm(x[:, 0])).float(), -1)
        return torch.argmax(weights / torch.empty_like(weights).exponential_(1), -1), position + 1


@torch.inference_mode()
def sample(settings, batches, args) -> None:
    for batch in batches:
        model = Model(settings).to("cuda", torch.bfloat16).eval()
        token = torch.zeros(batch, dtype=torch.long, device="cuda")
        position = torch.tensor([0], device="cuda")
        compiled = torch.compile(Caches(model, settings, batch).step, dynamic=False)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                compiled(token, position)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for kept, new in zip((token, position), compiled(token, position)):
                kept.copy_(new)

        def run(graph=graph):
            for _ in range(args.tokens):
                graph.replay()
            torch.cuda.synchronize()

        with alone():
            run()
            position.zero_()
            (seconds,) = timing.wall(run, 1, warm_up=0)
        seconds /= args.tokens
        record(
            args,
            settings,
            batch,
            model,
            us_per_step=round(1e6 * seconds, 1),
            tokens_per_second=round(batch / seconds, 1),
        )


def record(args, settings, batch, model, **measured) -> None:
    row = {
        "config": settings.name,
        "positions": settings.n_ctx,
        "parameters": sum(x.numel() for x in model.parameters()),
        "batch": batch,
        "recompute": args.recompute,
        **measured,
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3),
        "device": torch.cuda.get_device_name(),
        "pytorch": torch.__version__,
    }
    print(row, flush=True)
    add(args.out, row)


def run(what: str, settings, args) -> None:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.cache_size_limit = 64  # a block's graph for each batch
    {"step": step, "sample": sample}[what](settings, args.batch, args)
