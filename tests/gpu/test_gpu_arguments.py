"""How the launcher's flat list of arguments becomes the kernels' groups, and that each argument is described."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from blocksparse.gpu import manifest

KERNELS = Path(manifest.__file__).parent / "kernels"
SHORT = "forward-f16-d64-v64-m64-n64-g32-o0-w0-s1-r0-c2-sm90"
BOUNDED = SHORT.replace("-sm90", "-b1-sm90")
ROLES = "backward-f16-d64-v64-m128-n64-g32-M128-N64-G32-o0-w0-s1-r0-c0-k4-i1-b1-sm90"
LONG = "backward-bf16-d40-v128-m128-n64-g32-M128-N64-G32-o1-w1-s0-r1-c0-sm90"


@pytest.fixture(scope="module")
def arguments():
    """kernels/arguments.py without its package, which imports Triton."""
    spec = importlib.util.spec_from_file_location("arguments", KERNELS / "arguments.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def described():
    """The names that stand before a description in the docstring of kernels/__init__.py."""
    text = ast.get_docstring(ast.parse((KERNELS / "__init__.py").read_text()))
    columns = re.findall(r"^    (\w+(?:, \w+)*)(?:  |$)", text, re.MULTILINE)
    return {name for column in columns for name in column.split(", ")} | {"scale", "scale_log2"}


def parameters(launch, arguments):
    """As the kernels' own: groups in place of what they hold."""
    grouped = {*arguments.Plan._fields, *arguments.BoundedSizes._fields, *launch.constexprs}
    single = [name for name in launch.signature if name not in grouped]
    return [*single, "plan", "sizes", "flags"]


def test_every_argument_and_flag_is_described(arguments):
    groups = {*arguments.Plan._fields, *arguments.BoundedSizes._fields, *arguments.Flags._fields}
    tensors = {
        name
        for key in (SHORT, BOUNDED, LONG)
        for launch in manifest.launches(key)
        for name in launch.signature
    }
    inside = {f"{side}_{part}" for side in ("HEAD", "VALUE") for part in ("DIM", "PAD")} | {
        "WIDE"
    }  # QK and VO
    assert not (groups | tensors - inside) - described()
    assert not described() - (groups | tensors | {"dq", "dk", "dv", "count"})


def parameters_of(function):
    """The parameters of a kernel's function, read from its source."""
    for path in KERNELS.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == function:
                return [argument.arg for argument in node.args.args]
    raise AssertionError(f"no kernel {function}")


@pytest.mark.parametrize(
    "key", [SHORT, BOUNDED, LONG, ROLES, ROLES.replace("-b1", ""), ROLES.replace("-i1", "")]
)
def test_the_launcher_passes_arguments_in_the_order_of_the_kernel(arguments, key):
    """What a machine gets is a flat list: the groups' members where the group stands among the parameters."""
    for launch in manifest.launches(key):
        bounded = "query_rows" in launch.signature
        groups = dict(plan=arguments.Plan, sizes=arguments.BoundedSizes if bounded else arguments.Sizes)
        names = [name for name in parameters_of(launch.function) if name != "flags"]
        flat = [part for name in names for part in (groups[name]._fields if name in groups else [name])]
        assert flat == [name for name, kind in launch.signature.items() if kind != "constexpr"], launch.name
        assert len(launch.args) == len(flat)


@pytest.mark.parametrize("key", [SHORT, BOUNDED, LONG])
def test_groups_hold_the_flat_list(arguments, key):
    for launch in manifest.launches(key):
        names = parameters(launch, arguments)
        signature, constants, attributes = arguments.source_parts(names, launch)
        flat = [kind for name in names if name != "flags" for kind in as_tuple(signature[name])]
        assert sorted(flat) == sorted(kind for kind in launch.signature.values() if kind != "constexpr")
        assert len(attributes) == len(launch.attrs)
        for path in attributes:
            kind = signature[names[path[0]]]
            assert (kind[path[1]] if len(path) > 1 else kind).startswith("*")
        flags = arguments.flags_of(launch.constexprs)
        assert flags.QK == (
            launch.constexprs["HEAD_DIM"],
            launch.constexprs["HEAD_PAD"],
            launch.constexprs["WIDE"],
            key == BOUNDED,
        )
        assert list(constants.values()) == [*flags.QK, *flags.VO, *flags[2:]]
        assert {path[0] for path in constants} == {names.index("flags")}


def as_tuple(kind):
    return kind if isinstance(kind, tuple) else (kind,)
