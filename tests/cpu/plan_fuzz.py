"""Damaged plans against the CPU kernels under the address and undefined-behaviour sanitizers.

    python tests/cpu/plan_fuzz.py [--count 5000] [--seed 0] [--own]

Three fifths of the damaged plans carry the hash of the good plan they were made of, one fifth a hash that is damaged as
well, one fifth the hash of their own content: only these may run, and are then plans of something else (--own makes no
others). Ends with status 1 where a plan that is not what its hash says ran, or where a sanitizer reported anything.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.modules["tensorflow"] = None  # plans need none, and importing it takes longer than a short run
sys.path[:0] = [str(ROOT)]
from blocksparse.plan import build_blocks, make_plan, pack  # noqa: E402
from blocksparse.plan.blob import HEADER, Word, digest  # noqa: E402

SOURCES = ["plan", "plan_check", "query_tile", "key_tile", "forward", "backward"]
FLAGS = "-std=c++17 -O1 -g1 -w -fsanitize=address,undefined -fno-sanitize-recover=all".split()
EXTREMES = [
    -(2**31),
    -(2**31) + 1,
    -128,
    -2,
    -1,
    0,
    1,
    2,
    3,
    7,
    16,
    63,
    64,
    65,
    128,
    2**16,
    2**30,
    2**31 - 4,
    2**31 - 1,
]
HASHES = ("good", "good", "good", "damaged", "own")


def build_runner(folder: Path, include: Path) -> Path:
    """The program that runs plans; include: where Eigen's headers are."""
    runner = folder / "run_plans"
    files = [
        ROOT / "tests/cpu/sanitizer/run_plans.cc",
        *(ROOT / f"blocksparse/cpu/{name}.cc" for name in SOURCES),
    ]
    text = "".join(f'#include "{file}"\n' for file in files)
    command = ["g++", *FLAGS, f"-I{include}", f"-I{ROOT}", "-x", "c++", "-", "-o", runner]
    subprocess.run(command, input=text, text=True, check=True)
    return runner


def run_plans(runner: Path, plans: list[np.ndarray], seconds: float) -> list[str]:
    """What the runner says of each plan: "ran", or what is wrong. Raises RuntimeError with a sanitizer's report."""
    with tempfile.NamedTemporaryFile(suffix=".plans") as file:
        for plan in plans:
            file.write(np.int64(len(plan)).tobytes() + plan.astype(np.int32).tobytes())
        file.flush()
        environment = {
            **os.environ,
            "ASAN_OPTIONS": "allocator_may_return_null=0:max_allocation_size_mb=1024",
        }
        done = subprocess.run(
            [runner, file.name], capture_output=True, text=True, env=environment, timeout=seconds
        )
    said = done.stdout.splitlines()
    if done.returncode or len(said) != len(plans):
        raise RuntimeError(
            f"plan {len(said)} of {len(plans)}: status {done.returncode}\n{done.stderr[:6000]}"
        )
    return said


def good_plans() -> list[np.ndarray]:
    """Small plans of every kind: tile sizes, residue classes, closed, rectangles, short tiles, heads, key heads."""
    random = np.random.default_rng(0)

    def lower(blk_shape, head_idx, qry_idx, key_idx, blk_idx):
        return np.tri(*blk_shape, k=(qry_idx - key_idx) * blk_shape[0], dtype=bool)

    def noise(blk_shape, *block):
        return np.random.default_rng([*block[:3]]).random(blk_shape) < 0.5

    chunks, sparse = np.kron(np.eye(4), np.tri(3)), random.random((3, 7, 5)) < 0.4
    wide = np.eye(16, dtype=bool)
    wide[:, ::4] = True
    return [
        pack(make_plan(build_blocks(layout, size, mask, heads), residues, None, by_query, by_key, *kv_heads))
        for layout, size, mask, heads, residues, by_query, by_key, *kv_heads in (
            (np.tri(4), 16, lower, 1, 1, (16, 16), (16, 16)),
            (np.tri(6), 16, lower, 2, [1, 2], (64, 32), (32, 16)),
            (np.tri(3), 32, lower, 1, 1, (128, 128), (16, 32)),
            (chunks, 8, lower, 1, 4, (64, 64), (64, 64)),
            (chunks, 8, lower, 2, 1, (16, 16), (32, 16)),
            (np.kron(np.eye(2), np.tri(6)), 8, lower, 1, 1, (64, 16), (16, 128)),
            (sparse, 8, noise, None, 1, (32, 64), (64, 16)),
            (sparse, 16, None, None, 1, (16, 128), (128, 32)),
            (wide, 16, noise, 1, 1, (64, 64), (64, 64)),
            (np.zeros((1, 2, 2), bool), 16, None, None, 1, (16, 16), (64, 64)),
            (np.tri(6), 16, lower, 4, 2, (64, 32), (32, 16), 2),
            (sparse, 8, noise, None, 1, (32, 64), (64, 32), 1),
        )
    ]


def damaged(plan: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The plan with one to three things done to it, its hash left alone."""
    plan = plan.copy()
    for _ in range(random.integers(1, 4)):
        kind, word = random.integers(8), _any_word(plan, random)
        if kind <= 1:
            plan[word] = random.choice(EXTREMES)
        elif kind == 2:
            plan[word] ^= np.int32(1) << np.int32(random.integers(31))
        elif kind == 3:
            plan[word : word + 1] += random.choice(np.int32([-4, -1, 1, 4]))  # a slice wraps silently
        elif kind == 4:
            other = _any_word(plan, random)
            plan[word], plan[other] = plan[other], plan[word]
        elif kind == 5:
            plan[word] = plan[_any_word(plan, random)]
        elif kind == 6:
            size = random.integers(1, 20)
            plan[word : word + size] = random.integers(-(2**31), 2**31, len(plan[word : word + size]))
        else:
            cut = random.integers(max(HEADER, len(plan) - 40), len(plan) + 1)
            plan = np.concatenate([plan[:cut], np.zeros(random.integers(3), np.int32)])
            plan[Word.LENGTH] = len(plan)
    return plan


def _any_word(plan: np.ndarray, random: np.random.Generator) -> int:
    """One past the hash; of the header in every second case, where there is most to damage."""
    return int(random.integers(Word.LENGTH, HEADER if random.random() < 0.5 else len(plan)))


def make_cases(count: int, seed: int, kinds: tuple[str, ...] = HASHES) -> tuple[list[np.ndarray], list[str]]:
    """(plans, whose hash each has)."""
    random, good = np.random.default_rng(seed), good_plans()
    plans, hashes = list(good), ["none"] * len(good)
    while len(plans) < len(good) + count:
        whose = kinds[len(plans) % len(kinds)]
        original = good[random.integers(len(good))]
        plan = damaged(original, random)
        if np.array_equal(plan, original):
            continue
        if whose == "damaged":
            plan[Word.HASH + random.integers(4)] ^= np.int32(1) << np.int32(random.integers(31))
        elif whose == "own":
            plan[Word.HASH : Word.LENGTH] = digest(plan)
        plans.append(plan)
        hashes.append(whose)
    return plans, hashes


def check(runner: Path, count: int, seed: int, seconds: float, kinds: tuple[str, ...] = HASHES) -> str:
    """Counts, as a sentence. Raises RuntimeError where a plan passes that may not, or a sanitizer reports."""
    plans, hashes = make_cases(count, seed, kinds)
    said = run_plans(runner, plans, seconds)
    ran = collections.Counter(whose for whose, says in zip(hashes, said, strict=True) if says == "ran")
    total = collections.Counter(hashes)
    if ran["good"] or ran["damaged"] or ran["none"] != total["none"]:
        raise RuntimeError(f"ran: {dict(ran)} of {dict(total)}")
    return (
        f"{count} damaged plans: {total['good']} under a good one's hash and {total['damaged']} under a damaged one, "
        f"all refused; {total['own']} under their own, {total['own'] - ran['own']} refused, {ran['own']} ran as plans "
        f"of something else; no report"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--own", action="store_true", help="only plans under the hash of their own content")
    args = parser.parse_args()
    include = Path(next(path for path in map(Path, sys.path) if (path / "tensorflow/include").is_dir()))
    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(Path(folder), include / "tensorflow/include")
        print(check(runner, args.count, args.seed, 3600, ("own",) if args.own else HASHES))


if __name__ == "__main__":
    main()
