"""What one sees of samples while they are drawn: a text as it comes, of anything else how much is done."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Iterable, Iterator

import numpy as np
from tqdm import tqdm


def shown(chunks: Iterable[np.ndarray], prompt: np.ndarray, length: int, text: bool) -> Iterator[np.ndarray]:
    """The chunks [count, n] that go on from the prompt [count, time] to `length`, each shown as it passes."""
    return _written(chunks, prompt[0]) if text and len(prompt) == 1 else _counted(chunks, prompt, length)


def _written(chunks: Iterable[np.ndarray], prompt: np.ndarray) -> Iterator[np.ndarray]:
    """A character whose bytes two chunks share is written with the second."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    print(decoder.decode(bytes(prompt.astype(np.uint8))), end="", flush=True)
    for chunk in chunks:
        print(decoder.decode(bytes(chunk[0].astype(np.uint8))), end="", flush=True)
        yield chunk
    print(decoder.decode(b"", final=True))


def _counted(chunks: Iterable[np.ndarray], prompt: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """A bar over positions, with the tokens per second of all samples: after the first chunk, which compiles."""
    count, given = prompt.shape
    drawn, began = 0, time.perf_counter()
    with tqdm(total=length - given, unit="position", leave=False, file=sys.stderr) as bar:
        for number, chunk in enumerate(chunks):
            if number:
                drawn += chunk.size
                bar.set_postfix_str(f"{drawn / (time.perf_counter() - began):,.0f} tokens/s", refresh=False)
            else:
                began = time.perf_counter()
            bar.update(chunk.size // count)
            yield chunk
