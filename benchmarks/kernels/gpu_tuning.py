"""Times the grid of tiles and launches, and writes the table that the library chooses from.

    python benchmarks/kernels/gpu_tuning.py [--capability 90]                      measures, then writes the table
    python benchmarks/kernels/gpu_tuning.py --from benchmarks/results/attention_gpu_kernels.json     of rows measured

The table is blocksparse/gpu/tuned/sm_<capability>.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.common import without_tensorflow  # noqa: F401  first

from benchmarks.common import processes, truth  # isort: skip
from benchmarks.kernels import by_hand  # isort: skip
from blocksparse.gpu import tuning  # isort: skip

HERE = Path(__file__).resolve().parent
# Cases that decide each (padded head dim, most columns a row sees on average) of the table; those of 64, whose plans
# are closed, for reordered attention only.
DECIDES = {
    (32, 64): ["imagenet64 strided"],
    (32, 300): ["imagenet64 local"],
    (32, None): ["imagenet64 all"],
    (64, 300): ["enwik8 local"],
    (64, None): ["enwik8 fixed c32", "enwik8 fixed c8", "enwik8 all"],
    (128, 64): ["cifar strided"],
    (128, 300): ["cifar local"],
    (128, None): ["cifar all"],
}
LONG = [
    "enwik8 fixed c32",
    "enwik8 all",
    "cifar all",
    "imagenet64 all",
]  # as LONG of blocksparse/gpu/key.py has it
# Cases that decide the tiles of dense rows, which see SHARE of all columns or more, by padded head dim; the second has
# few column tiles a row tile, as rows of it are not LONG.
DENSE = {32: ["imagenet64 all", "short all 32"], 64: ["enwik8 all", "short all"]}
SHARE = 0.4
DENSE_TILES, DENSE_ROWS = ((192, 128), (192, 64)), 192
NAMES = by_hand.NAMES
CLOSED = {"closed": "attention_closed_forward", "whole": "attention_whole_gradient"}


def grid() -> list[dict]:
    """Every variant that is timed: forward and dq share the plan's query side, dk and dv take its key side."""
    variants = []
    for (_, work), cases in DECIDES.items():
        short = work is not None
        shapes = [(32, 32), (64, 64)] if short else [(64, 64), (64, 128), (128, 128)]
        shapes += [(128, 32), (128, 64)] if work == 64 else [(64, 32)]
        pairs = [*itertools.product(shapes, CLOSED if work == 64 else NAMES)]
        pairs += [((32, 32), kernel) for kernel in NAMES if work == 64]
        for case, (tile, kernel) in itertools.product(cases, pairs):
            warps = {32: (1, 2, 4), 64: (4,), 128: (4, 8)}[tile[0]]
            for w, stages, registers in itertools.product(warps, (1, 2, 3), (0, 168, 128, 112, 96)):
                for heaviest_first in (False,) if short else (False, True):
                    how = dict(warps=w, stages=stages, split=not short, heaviest_first=heaviest_first)
                    how |= dict(maxnreg=registers)
                    variants.append(dict(case=case, kernel=kernel, by_query=tile, by_key=tile) | how)
        if work != 64:  # warp roles: one row tile a program, or as many programs as run side by side
            ways = itertools.product(
                cases, NAMES, (32, 64), (3, 4, 5, 6), (80, 168), (False, True), (False, True)
            )
            for case, kernel, columns, stages, registers, heaviest_first, walks in ways:
                how = dict(warps=4, stages=stages, maxnreg=registers, heaviest_first=heaviest_first)
                how |= dict(roles=columns, programs=(2 if registers == 80 else 1) if walks else None)
                variants.append(dict(case=case, kernel=kernel, by_query=(128, 64), by_key=(128, 64)) | how)
    return variants + dense_grid()


def dense_grid() -> list[dict]:
    """Dense rows with warp roles, in row tiles of 192 and beside them of 128."""
    variants = []
    shapes = [(*DENSE_TILES, 128), ((128, 64), (128, 64), 80), ((128, 64), (128, 64), 168)]
    for (by_query, by_key, registers), cases in itertools.product(shapes, DENSE.values()):
        ways = itertools.product(cases, NAMES, (32, 64, 128), (3, 4, 6), (None, 1), (False, True))
        for case, kernel, columns, stages, programs, heaviest_first in ways:
            how = dict(warps=4, stages=stages, maxnreg=registers, split=False, heaviest_first=heaviest_first)
            how |= dict(roles=columns, programs=programs)
            if columns <= (by_key if kernel == "dkv" else by_query)[1]:
                variants.append(dict(case=case, kernel=kernel, by_query=by_query, by_key=by_key) | how)
    return variants


def measure() -> list[dict]:
    """Times the grid on this machine's GPU."""
    with tempfile.TemporaryDirectory() as folder:
        variants = Path(folder) / "variants.json"
        variants.write_text(json.dumps(grid()))
        return processes.records(HERE / "gpu_kernels.py", str(variants), without=processes.TENSORFLOWS)


def write(rows: list[dict], file: Path) -> None:
    """The table: per kind of attention the tiles with the least total time, and for them each kernel's best launch;
    first with warp roles where they win, then without, for whoever cannot compile them.
    """
    right = truth.TOLERANCE["float16"]
    rows = [row for row in rows if row.get("dtype", "f16") == "f16" and row.get("relative_error", 1) < right]
    plain = [row for row in rows if not row.get("roles")]
    tiles, users = choose_tiles(rows, plain)
    launches = choose_launches(rows, plain, users)
    not_timed = {dim for dim, cases in DENSE.items() if not timed(rows, cases)}
    launches = by_hand.short_launches(launches) + launches
    launches += by_hand.dense_launches(not_timed) + by_hand.scattered_launches()
    lists = dict(tiles=sorted(tiles, key=place), launches=launches)
    parts = [
        f'  "{name}": [\n' + ",\n".join("    " + json.dumps(row) for row in some) + "\n  ]"
        for name, some in lists.items()
    ]
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def choose_tiles(rows: list[dict], plain: list[dict]) -> tuple[list[dict], dict]:
    """The rows of tiles, and {(dim, kernel, M, N, long, roles): cases} of the launches that they need."""
    tiles, users = by_hand.tiles(), {}
    dense, rows = rows, [row for row in rows if not is_dense(row)]
    for (dim, work), cases in DECIDES.items():
        closed = work == 64
        kernels = [*(CLOSED if closed else ()), *NAMES]
        reordered = dict(reordered=True) if closed else {}
        for measured, roles in [(plain, {})] + [(rows, dict(roles=True))] * (not closed):
            by_query = fastest(measured, cases, CLOSED if closed else ("forward", "dq"), "by_query")
            # A closed plan has no by_key. Where a plan of so little work is not closed, both sides are like that.
            by_key = [32, 32] if closed else fastest(measured, cases, ("dkv",), "by_key")
            row = dict(dtype="half", dim=dim, work=work) | reordered
            row |= dict(by_query=by_query, by_key=by_key)
            if row in tiles:  # roles win nothing
                continue
            tiles.append(row | roles)
            for kernel, case in itertools.product(kernels, cases):
                tile = by_key if kernel == "dkv" or (closed and kernel in NAMES) else by_query
                users.setdefault((dim, kernel, *tile, case in LONG, bool(roles)), []).append(case)
    for dim, cases in DENSE.items():
        tile = dict(dtype="half", dim=dim, work=None, share=SHARE)
        if not timed(dense, cases):
            tiles.append(tile | by_hand.DENSE_TILES[dim])
            continue
        by_query = fastest(dense, cases, ("forward", "dq"), "by_query")
        by_key = fastest(dense, cases, ("dkv",), "by_key")
        tiles.append(tile | dict(by_query=by_query, by_key=by_key, roles=True))
        for kernel, case in itertools.product(NAMES, cases):
            shape = by_key if kernel == "dkv" else by_query
            if DENSE_ROWS in shape:  # else the launch of other rows serves these too
                users.setdefault((dim, kernel, *shape, case in LONG, True), []).append(case)
    return tiles, users


def timed(rows: list[dict], cases: list[str]) -> bool:
    """Whether there are times of all of the cases on row tiles of 192."""
    return {row["case"] for row in rows if is_dense(row)} >= {*cases}


def is_dense(row: dict) -> bool:
    """Whether it is of tiles that dense rows alone have."""
    return DENSE_ROWS in row["by_key" if row["kernel"] == "dkv" else "by_query"]


def choose_launches(rows: list[dict], plain: list[dict], users: dict) -> list[dict]:
    """The best launch of each user of choose_tiles."""
    launches = {}
    for (dim, kernel, m, n, long, roles), cases in users.items():
        side = "by_key" if kernel == "dkv" else "by_query"
        best = common(rows if roles else plain, cases, kernel, side, (m, n))
        name = dict(kernel=(NAMES | CLOSED)[kernel], dtype="half", dim=dim, m=m, n=n, long=long)
        how = dict(warps=best["warps"], stages=best["stages"], registers=best.get("maxnreg") or None)
        how |= dict(split=best["split"], heaviest_first=best["heaviest_first"])
        how |= {name: best[name] for name in ("roles", "programs") if best.get(name)}
        launches.setdefault(tuple(name.values()), name | how)
    return list(launches.values())


def place(row: dict) -> tuple:
    """Where a row of tiles stands: the first that fits is taken."""
    work = row["work"] or 1e9
    # Dims of 16 have no tiles of their own where rows are short, and stand behind those of 32.
    dims = max(32, row["dim"]), work > 300, row["dim"]
    kind = row["dtype"], work > 64, "reordered" not in row, *dims
    return *kind, "scatter" not in row, work, "share" not in row, "roles" not in row


def how_of(row: dict) -> tuple:
    how = row["warps"], row["stages"], row.get("maxnreg") or 0, row["split"], row["heaviest_first"]
    return *how, row.get("roles") or 0, row.get("programs") or 0


def of(rows, case, kernel, side, tile):
    """Milliseconds by way of launching, the best of repeated measurements."""
    found = {}
    for row in rows:
        if row["case"] == case and row["kernel"] == kernel and tuple(row[side]) == tuple(tile):
            how = how_of(row)
            if how not in found or row["ms"] < found[how]["ms"]:
                found[how] = row
    return found


def fastest(rows, cases, kernels, side) -> list[int]:
    """The tile with the least time, over the geometric mean of its cases."""
    shapes = {tuple(row[side]) for row in rows if row["case"] in cases and row["kernel"] in kernels}

    def cost(tile):
        product = 1.0
        for case in cases:
            times = [of(rows, case, kernel, side, tile) for kernel in kernels]
            if not all(times):
                return float("inf")
            product *= sum(min(row["ms"] for row in found.values()) for found in times)
        return product

    return list(min(sorted(shapes), key=cost))


def common(rows, cases, kernel, side, tile) -> dict:
    """The launch that is best for all the cases together, of those measured in the most of them; where one was not
    measured, the case's slowest stands in.
    """
    measured = [of(rows, case, kernel, side, tile) for case in cases]
    known = {how: row for found in measured for how, row in found.items()}

    def cost(how):
        product = 1.0
        for found in measured:
            product *= found[how]["ms"] if how in found else max(row["ms"] for row in found.values())
        return sum(how not in found for found in measured), product

    return known[min(sorted(known, key=str), key=cost)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from", dest="files", type=Path, nargs="+", default=[], help="rows already measured"
    )
    parser.add_argument("--capability", type=int, default=90, help="ten times that of the GPU they are of")
    parser.add_argument("--out", type=Path, help="the table; the library's own by default")
    args = parser.parse_args()
    rows = [row for file in args.files for row in json.loads(file.read_text())]
    write(rows or measure(), args.out or tuning.FOLDER / f"sm_{args.capability}.json")


if __name__ == "__main__":
    main()
