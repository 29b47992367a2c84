"""Mutated data files, configurations and checkpoints: each is read, or refused in a sentence that names it.

    python tests/model/fuzz_files.py 6000 [SEED]

Prints the counts as JSON, and ends with status 1 at the first plain error. Memory is limited to what a reader may take
of files as small as these.
"""

from __future__ import annotations

import collections
import gzip
import io
import json
import pickle
import resource
import struct
import sys
import tarfile
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import soundfile
from PIL import Image
from scipy.signal import resample_poly  # noqa: F401, before memory is limited
from sparse_transformer import checkpoint, config, metrics, origin, runs
from sparse_transformer.formats import audio, cifar_pickle, idx, images, text

MEMORY = 1 << 30  # bytes that this process may take beyond what it has at its start
SECONDS = 30  # for one file


cifar_pickle.SHAPE = (10, 3072)  # a real batch has 31 MB, nearly all of it pixels


def cifar_batch(protocol: int) -> bytes:
    data = np.zeros(cifar_pickle.SHAPE, np.uint8)
    record = {
        b"batch_label": b"training batch",
        b"labels": list(range(100)),
        b"data": data,
        b"filenames": [b"a.png"],
    }
    return pickle.dumps(record, protocol=protocol)


def cifar_archive() -> bytes:
    raw, packed = cifar_batch(2), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return packed.getvalue()


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def recording(kind: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(6000) / 9).reshape(-1, 2) / 2, 16_000, subtype, format=kind)
    return file.getvalue()


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(32 * 40 * 3, dtype=np.uint8).reshape(32, 40, 3)).save(file, kind)
    return file.getvalue()


def images_idx() -> bytes:
    return struct.pack(">HBB3I", 0, 8, 3, 20, 28, 28) + bytes(range(256)) * 61 + bytes(64)


def read_pickle_folder(path: Path):
    return images._cifar10_batch("data_batch_1", path.read_bytes())


def cases() -> dict[str, tuple[int, str, list[bytes], object]]:
    """Share of all files, file name, valid contents, reader."""
    settings = json.dumps(asdict(config.load("enwik8_small"))).encode()
    noted = json.dumps({"path": None, "size": 12, "digest": "ab"}).encode()
    rows = b"step,bits,gradient_norm,seconds\n" + b"".join(b"%d,8.0,1.5,0.1\n" % i for i in range(9))
    arrays = {
        "step": np.int64(3),
        "decayed": np.ones(50, np.float32),
        "undecayed": np.zeros((3, 4), np.float32),
    }
    wavs = [recording("WAV", s) for s in ("PCM_16", "PCM_24", "FLOAT", "PCM_U8")]
    return {
        "CIFAR-10 pickle": (10, "data_batch_1", [cifar_batch(2), cifar_batch(4)], read_pickle_folder),
        "idx": (5, "images-idx3-ubyte.gz", [images_idx(), gzip.compress(images_idx())], idx.read_idx),
        "dictionary": (5, "a.dict.dz", [gzip.compress(b"Zythum, n. [L.] " * 900)], text.read_text),
        "CIFAR-10 archive": (5, "cifar.tar.gz", [gzip.compress(cifar_archive()), cifar_archive()], images.read_cifar10),
        "ImageNet npz": (10, "batch.npz", [npz(data=np.ones((4, 12288), np.uint8))], images.read_batch),
        "checkpoint": (15, "checkpoint.npz", [npz(**arrays)], lambda path: checkpoint.read(path.parent)),
        "config.json": (15, "config.json", [settings], lambda path: runs.read_config(path.parent)),
        "data.json": (5, "data.json", [noted], lambda path: origin.read(path.parent)),
        "metrics.csv": (5, "metrics.csv", [rows], metrics.read_rows),
        "WAV": (12, "a.wav", wavs, audio.read_recording),
        "FLAC": (8, "a.flac", [recording("FLAC", "PCM_16"), recording("FLAC", "PCM_24")], audio.read_recording),
        "picture": (5, "a.png", [picture("PNG"), picture("JPEG")], lambda path: images.read_picture(path, 8, 8)),
    }  # fmt: skip


NUMBERS = [0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes, near the beginning or the end more often than not, where headers are."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        near = min(len(data), 400)
        at = int(
            rng.choice([rng.integers(near), len(data) - 1 - rng.integers(near), rng.integers(len(data))])
        )
        change = rng.integers(6)
        if change == 0:
            data[at] ^= 1 << rng.integers(8)
        elif change == 1:
            data[at] = rng.integers(256)
        elif change == 2:
            size, number = int(rng.choice([2, 4, 8])), int(rng.integers(len(NUMBERS)))
            order = "little" if rng.integers(2) else "big"
            data[at : at + size] = (NUMBERS[number] % 2 ** (8 * size)).to_bytes(size, order)
        elif change == 3:
            del data[at:]
        elif change == 4:
            del data[at : at + int(rng.integers(1, 40))]
        else:
            start = int(rng.integers(len(data)))
            data[at:at] = data[start : start + int(rng.integers(1, 40))]
        if not data:
            break
    return bytes(data)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(count: int, seed: int = 0) -> dict:
    everything = cases()
    rng = np.random.default_rng(seed)
    counts: dict = {name: collections.Counter() for name in everything}
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        for name, (share, file_name, contents, read) in everything.items():
            path = Path(folder) / file_name
            for _ in range(max(1, count * share // 100)):
                raw = mutated(contents[rng.integers(len(contents))], rng)
                path.write_bytes(raw)
                began = time.monotonic()
                try:
                    read(path)
                    counts[name]["read"] += 1
                except ValueError as error:  # DataError, and what the readers of runs raise
                    counts[name]["refused"] += 1
                    assert str(error), f"{name}: an error without a word"
                except BaseException:
                    kept = Path(tempfile.gettempdir()) / f"fuzz_{file_name}"
                    kept.write_bytes(raw[: 1 << 20])
                    print(f"{name}: kept in {kept}\n{traceback.format_exc()}", file=sys.stderr)
                    raise SystemExit(1) from None
                assert time.monotonic() - began < SECONDS, f"{name} took more than {SECONDS} s"
            path.unlink()
    return {
        **counts,
        "files": sum(map(sum, (c.values() for c in counts.values()))),
        "MB": (peak() - before) >> 20,
    }


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
