"""The header's words have the same names and numbers in C++ and in Python."""

import re
from pathlib import Path

import numpy as np

from blocksparse.plan import blob, build_blocks, make_plan

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "blocksparse/cpu/plan_words.h").read_text()


def enumerators(start, end):
    """name -> number of the enumerators between two lines, named as Python does."""
    body = TEXT[TEXT.index(start) : TEXT.index(end, TEXT.index(start))]
    names = re.findall(r"^  k(\w+)(?: = (\d+))?,", body, re.MULTILINE)
    snake = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper() for name, _ in names]
    return {name: int(number or at) for at, (name, (_, number)) in enumerate(zip(snake, names, strict=True))}


def constants(name):
    return [
        int(number, 0) for number in re.search(rf"\b{name}\S* = \{{?([\w, ]+)\}}?[,;]", TEXT)[1].split(",")
    ]


def test_the_words():
    assert enumerators("enum Word", "};") == {word.name: word.value for word in blob.Word}
    assert constants("kPlanMagic")[0] == blob.MAGIC and constants("kPlanVersion") == [blob.VERSION]
    assert constants("kHeaderWords") == [blob.HEADER]


def test_a_side_and_its_arrays():
    sides, arrays = enumerators("namespace side", "};"), enumerators("namespace array", "};")
    assert list(sides) == [*(name.upper() for name in blob.SIDE), "COUNT"]
    assert list(arrays) == [*(name.upper() for name in blob.ARRAYS), "COUNT"]
    assert [*sides.values()] == [*range(len(blob.SIDE) + 1)] and [*arrays.values()] == [
        *range(len(blob.ARRAYS) + 1)
    ]
    assert constants("kQueryStarts") == blob._QUERY_STARTS and constants("kKeyStarts") == blob._KEY_STARTS


def test_words_without_a_name_are_zero():
    plan = blob.pack(make_plan(build_blocks(np.tri(4), 16, None, 2)))
    assert not plan[[14, 15, 40, 41]].any()  # of key heads, where there are as many as heads
    for begin, end in ((24, 32), (42, 48)):
        assert not plan[begin:end].any() and not set(blob.Word) & set(range(begin, end))
