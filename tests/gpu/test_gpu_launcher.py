"""The launcher's parts that need no GPU: manifests, and compiling in a process of its own."""

import ctypes
import importlib.util
import os
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from blocksparse.gpu import manifest, tuning
from blocksparse.gpu.cuda import nvrtc
from blocksparse.gpu.key import parse
from blocksparse.native import cache, cuda, devices

SYMBOLS = (
    "batch heads head_dim value_dim query_time key_time distinct q.M q.N q.g q.tiles q.column_tiles q.distinct_masks "
    "q.most_tiles q.most_columns k.M k.N k.g k.tiles k.column_tiles k.distinct_masks k.most_tiles k.most_columns "
    "kv_heads multiprocessors query_rows key_rows"
).split()
KEYS = [
    "forward-f16-d64-v64-m64-n64-g32-o0-w0-s1-r0-c0-sm90",
    "backward-tf32-d40-v128-m32-n64-g8-M64-N128-G16-o1-w1-s0-r1-c0-sm80",
    "backward-f16-d64-v64-m64-n64-g32-M64-N64-G32-o1-w0-s1-r0-c2-sm90",
    "forward-f16-d64-v64-m64-n64-g32-o1-w0-s1-r0-c0-i1-sm90",
    "backward-tf32-d40-v128-m32-n64-g8-M64-N128-G16-o1-w1-s1-r0-c0-i2-b1-sm80",
    "backward-f16-d64-v64-m64-n64-g32-M64-N64-G32-o1-w0-s1-r0-c2-k4-sm90",
    "backward-f16-d64-v64-m192-n128-g64-M128-N64-G64-o0-w0-s1-r1-c0-k4-sm80",
]


HEAD = "blocksparse-manifest 2 k\n"
FILE = f"{HEAD}file b 4 00\n"


@pytest.fixture
def compiler(library, tmp_path):
    """Asks for keys from a compile process of the test's own: call(program, key) -> folder or message."""
    out = ctypes.create_string_buffer(4096)

    def configure(program, folders=(tmp_path,), shipped=()):
        command = [sys.executable, "-c", textwrap.dedent(program), str(folders[-1])] if program else []
        lists = ("\n".join(map(str, each)).encode() for each in (folders, shipped, command))
        library.blocksparse_gpu_configure(*lists)

    def folder(key):
        library.blocksparse_gpu_folder(key.encode(), out, len(out))
        return out.value.decode()

    configure.folder = folder
    umask = os.umask(0o022)  # what others may write is not used
    yield configure
    os.umask(umask)
    cuda.configure(library, cache.cache_folder())


# One argument a line: newlines separate the words of the command, so the programs are single lines.
WRITES = "import os, sys; f = sys.argv[1] + '/' + sys.argv[2]; os.makedirs(f); open(f + '/manifest', 'w'); "
WRITES += "open(sys.argv[1] + '/runs', 'a').write('.')"


def describe(library, text, **symbols):
    values = (ctypes.c_int64 * len(SYMBOLS))(*(symbols.get(name, 1) for name in SYMBOLS))
    out = ctypes.create_string_buffer(8192)
    library.blocksparse_gpu_describe(text.encode(), values, out, len(out))
    return out.value.decode()


@pytest.mark.parametrize("key", KEYS)
def test_the_launcher_reads_what_the_compiler_writes(library, key):
    files = {
        launch.function: (f"{launch.function}.cubin", b"code", "symbol", 4, 1000)
        for launch in manifest.launches(key)
    }
    sizes = {"batch": 3, "heads": 8, "kv_heads": 2, "query_time": 7, "q.most_tiles": 11, "k.most_tiles": 13}
    sizes |= {"q.tiles": 17, "k.tiles": 19, "q.column_tiles": 23, "k.column_tiles": 29}
    lines = describe(library, manifest.text(key, files), **sizes).splitlines()
    assert lines[0] == key
    for launch in manifest.launches(key):
        assert f"{launch.function}.cubin 4 {manifest.file_digest(b'code')}" in lines
    by_name = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    groups = 8 if parse(key).orders else 1  # of column tiles that segments have cut
    for launch in manifest.launches(key):
        side = "q" if "p:q.rows" in launch.args else "k"
        heads = sizes["heads"] if side == "q" or "-k4-" not in key else sizes["kv_heads"]
        programs = sizes[f"{side}.most_tiles"] * heads * 3 * launch.constexprs.get("PARTS", 1)
        if "cut" in launch.function:
            programs = launch.constexprs["SHARES"] * sizes[f"{side}.tiles"] * groups * 3
        if launch.grid[0].startswith("min("):  # of several a multiprocessor, of which there is one here
            programs = int(launch.grid[0].removeprefix("min(").partition("*")[0])
        words = by_name[launch.function]
        assert words[:5] == ["4", "1000", str(programs), "1", "1"]
        assert len(words) == 5 + len(launch.args)
    if parse(key).segments:
        assert by_name["q.cut_spans"] == [str(12 * 17 * groups * 3)]
        assert by_name["q.cut_masks"] == [str(4 * 2 * parse(key).by_query[0] * 23 * groups * 3)]
    two_passes = any(name.startswith("attention_key_gradient") for name in by_name)
    assert by_name.get("delta") == ([str(4 * 3 * 8 * 7)] if two_passes else None)


@pytest.mark.parametrize("key", [key for key in KEYS if not parse(key).segments])
def test_without_segments_nothing_of_them_is_compiled_or_launched(key):
    cut = key.replace("-sm", "-i1-sm")
    assert len(manifest.launches(cut)) > len(manifest.launches(key)) and len(manifest.temps(cut)) > len(
        manifest.temps(key)
    )
    for launch in manifest.launches(key):
        assert "SEGMENTS" not in launch.constexprs and "cut" not in launch.function
        assert not [word for word in launch.args if "cut" in word or "segments" in word]


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("", "empty manifest"),
        ("blocksparse-manifest 1 k", "line 1: not a manifest of version 2"),
        (f"{HEAD}temp a 4*(batch", "line 2: bad expression '4*(batch'"),
        (f"{HEAD}temp a 4*bath", "at 'bath'"),
        (f"{HEAD}temp a min(batch)", "bad expression 'min(batch)' at ')'"),
        (f"{HEAD}launch a b c 4 0 1 1", "line 2: cannot read 'launch' of 8 words"),
        (f"{HEAD}launch a b c four 0 1 1 1", "line 2: warps and shared memory must be numbers"),
        (f"{HEAD}launch a b c 4 0 1 1 1 p:q", "line 2: no line before tells of file b"),
        (f"{FILE}launch a b c 4 0 1 1 1 p:nobody", "unknown argument p:nobody"),
        (f"{FILE}launch a b c 4000 0 1 1 1 p:q", "line 3: 4000 warps and 0 bytes of shared memory"),
        (f"{FILE}launch a b c 4 -1 1 1 1 p:q", "line 3: 4 warps and -1 bytes of shared memory"),
        (f"{FILE}launch a b c 4 0 batch 65536 1 p:q", "a grid's side is 65536; it has to be 0 to 65535"),
        (f"{FILE}launch a b c 4 0 0-batch 1 1 p:q", "a grid's side is -1; it has to be 0 to 2147483647"),
        (
            f"{FILE}launch a b c 4 0 1 1 1 i:2147483648",
            "an argument is 2147483648; it has to be -2147483648 to",
        ),
        (f"{HEAD}file ../b 4 00", "line 2: file ../b is not beside the manifest"),
        (f"{HEAD}file b -4 00", "line 2: a file of -4 bytes; 1 to 64 MB can be"),
        (f"{HEAD}temp a -1", "bad expression '-1'"),
        (f"{HEAD}temp a 0-1", "a is -1; it has to be 0 to 1099511627776"),
        (f"{HEAD}temp a {2**62}", f"a is {2**62}; it has to be 0 to"),
        (f"{HEAD}temp a {2**63}", f"bad expression '{2**63}'"),
        (f"{HEAD}temp a {2**62}*batch*2", "a leaves 64 bits"),
        (f"{HEAD}temp a 0-{2**63 - 1}-2", "a leaves 64 bits"),
        (f"{HEAD}temp a (0-{2**63 - 1}-1)/(0-1)", "a leaves 64 bits"),
        (f"{HEAD}temp a {'(' * 65}1{')' * 65}", "bad expression '(((("),
        (f"{HEAD}temp a {'(' * 900_000}", "bad expression '(((("),
        (f"{HEAD}temp a {'min(' * 200_000}", "bad expression 'min("),
        (f"{HEAD}temp a 1{'+1' * 64}", "bad expression '1+1"),
        (f"{HEAD}temp a {'1' * 2**20}", "a manifest of more than 1 MB"),
    ],
)
def test_a_bad_manifest_is_refused(library, text, wrong):
    answer = describe(library, text)
    assert answer.startswith("error: ") and wrong in answer, answer[:500]


def test_any_text_is_read_or_refused(library):
    random = np.random.default_rng(0)
    words = "( ) + - * / min( , batch heads q.M 0 1 2 9223372036854775807 k. é \0".split()
    for _ in range(3000):
        text = "".join(random.choice(words, random.integers(1, 90)))
        assert describe(library, f"{HEAD}temp a {text}").startswith(("k\na ", "error: "))


@pytest.mark.parametrize(
    "text, value",
    [
        ("2+3*4", 14),
        ("(2+3)*4/3", 6),
        ("7-2-1", 4),
        ("batch*heads+1", 7),
        ("4/0", 0),
        ("min(heads,batch*2)", 3),
    ],
)
def test_expressions(library, text, value):
    assert describe(library, f"{HEAD}temp a {text}", batch=2, heads=3).split()[-1] == str(value)


def test_a_key_is_compiled_once_by_whoever_asks(compiler, tmp_path):
    compiler(WRITES)
    answers = []
    asking = [threading.Thread(target=lambda: answers.append(compiler.folder("key"))) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert set(answers) == {str(tmp_path / "key")}
    assert (tmp_path / "runs").read_text() == "."


def test_a_shipped_kernel_comes_first(compiler, tmp_path):
    for name in ("shipped", "cache"):
        (tmp_path / name / "key").mkdir(parents=True)
        (tmp_path / name / "key" / "manifest").touch()
    compiler(WRITES, (tmp_path / "shipped", tmp_path / "cache"))
    assert compiler.folder("key") == str(tmp_path / "shipped" / "key")


@pytest.mark.parametrize("capability, serves", [(86, True), (89, True), (75, False), (90, False)])
def test_kernels_of_8_0_serve_what_is_left_of_its_generation(compiler, tmp_path, capability, serves):
    for name in ("forward-sm80", "forward-sm89/empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "forward-sm80" / "manifest").touch()
    compiler(None)
    answer = compiler.folder(f"forward-sm{capability}")
    assert answer == str(tmp_path / "forward-sm80") if serves else "no compiled kernel" in answer
    assert (tuning.table(capability) == tuning.table(80)) == serves
    compiler(WRITES)
    assert compiler.folder(f"backward-sm{capability}") == str(tmp_path / f"backward-sm{capability}")


@pytest.mark.parametrize("part", ["", "key", "key/manifest"])
@pytest.mark.parametrize("damage", ["others may write it", "a link"])
def test_kernels_that_others_may_have_put_there_are_passed_over(compiler, tmp_path, part, damage):
    shipped = tmp_path / "shipped"
    (shipped / "key").mkdir(parents=True)
    (shipped / "key" / "manifest").touch()
    if damage == "a link":
        (shipped / part).rename(tmp_path / "elsewhere")
        (shipped / part).symlink_to(tmp_path / "elsewhere")
    else:
        (shipped / part).chmod(0o777)
    compiler(None, (shipped, tmp_path / "cache"))
    assert f"{shipped}/key is not used: it is a link, another user's, or others may write" in compiler.folder(
        "key"
    )
    compiler(WRITES, (shipped, tmp_path / "cache"))
    assert compiler.folder("key") == str(tmp_path / "cache" / "key")
    compiler(None, (shipped, tmp_path / "cache"), (shipped,))  # as the package's own files are
    assert compiler.folder("key") == str(shipped / "key")


def test_a_failing_compiler_is_quoted_and_asked_again(compiler, tmp_path):
    compiler("import sys; sys.exit('no such shape')")
    answer = compiler.folder("key")
    assert answer.startswith("error: compiling key failed: no such shape"), answer
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "manifest").touch()
    assert compiler.folder("key") == str(tmp_path / "key")


def test_without_triton_the_message_says_what_to_do(compiler):
    compiler("")
    answer = compiler.folder("key")
    for part in (
        "no compiled kernel key",
        "pip install 'triton",
        "compile.py --out FOLDER key",
        "put FOLDER/key there",
    ):
        assert part in answer, answer


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_compiles_beside_a_living_tensorflow(library, compiler, tmp_path, monkeypatch):
    monkeypatch.delenv("BLOCKSPARSE_PREBUILT", raising=False)
    cuda.configure(library, tmp_path)
    folder = compiler.folder(KEYS[0])
    assert folder == str(cuda.kernel_folders(tmp_path)[-1] / KEYS[0])
    bad = compiler.folder("forward-f64-d64")
    assert "names no kernel" in bad, bad
    assert tf.reduce_sum(tf.ones(3)) == 3 and "triton" not in sys.modules


@pytest.mark.skipif(nvrtc.path() is None, reason="NVRTC 12 is not installed")
@pytest.mark.parametrize("override, suffix", [("", "cubin"), ("75", "ptx")])
def test_nvrtc_compiles_beside_a_living_tensorflow(
    library, compiler, tmp_path, monkeypatch, override, suffix
):
    monkeypatch.delenv("BLOCKSPARSE_PREBUILT", raising=False)
    monkeypatch.setenv("BLOCKSPARSE_CAPABILITY", override)
    cuda.configure(library, tmp_path)
    key = "forward-f16-d64-v64-m64-n32-g32-o0-w0-s1-r0-c0-sm75"
    folder = compiler.folder(key)
    assert folder == str(cuda.kernel_folders(tmp_path)[-1] / key)
    assert (Path(folder) / f"attention_forward.{suffix}").exists()


@pytest.mark.parametrize("key, wanted", [(KEYS[0], "Triton"), (KEYS[0].replace("sm90", "sm70"), "NVRTC 12")])
def test_without_the_compiler_the_message_says_what_to_do(
    library, compiler, tmp_path, monkeypatch, key, wanted
):
    if wanted != "Triton" and nvrtc.path() is not None:
        pytest.skip("NVRTC is installed")
    monkeypatch.delenv("BLOCKSPARSE_PREBUILT", raising=False)
    monkeypatch.setattr(cuda, "has_triton", lambda: False)
    cuda.configure(library, tmp_path)
    answer = compiler.folder(key)
    for part in (
        f"no compiled kernel {key}",
        f"{wanted} is not installed: pip install",
        "put FOLDER/forward",
    ):
        assert part in answer, answer


def test_an_old_gpu_runs_the_reference(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "capabilities", lambda: (90, 61))
    assert "GPU:1 has compute capability 6.1" in cuda.reason_for_reference(tmp_path)
    monkeypatch.setattr(cuda, "capabilities", lambda: (90,))
    monkeypatch.setattr(cuda, "has_triton", lambda: False)
    assert "Triton is not installed" in cuda.reason_for_reference(tmp_path)
    cuda.kernel_folders(tmp_path)[-1].mkdir()
    assert cuda.reason_for_reference(tmp_path) is None


@pytest.mark.parametrize("found, reason", [("libnvrtc.so.12", None), (None, "NVRTC 12 is not installed")])
def test_gpus_of_two_generations_want_a_compiler_each(monkeypatch, tmp_path, found, reason):
    monkeypatch.setattr(cuda, "capabilities", lambda: (70, 90))
    monkeypatch.setattr(cuda, "has_triton", lambda: True)
    monkeypatch.setattr(nvrtc, "path", lambda: found)
    given = cuda.reason_for_reference(tmp_path)
    assert given is None if reason is None else given.startswith(reason)


def test_a_newer_gpu_takes_the_kernels_of_an_older_one(monkeypatch, tmp_path):
    """As PTX, in a folder of their own: the keys are the older one's."""
    monkeypatch.delenv("BLOCKSPARSE_CAPABILITY", raising=False)
    usual = cuda.kernel_folders(tmp_path)
    monkeypatch.setenv("BLOCKSPARSE_CAPABILITY", "70")
    assert cuda.override() == 70
    assert cuda.kernel_folders(tmp_path)[-1].name == usual[-1].name + "-ptx"
    monkeypatch.setenv("BLOCKSPARSE_CAPABILITY", "80")
    with pytest.raises(ValueError, match="BLOCKSPARSE_CAPABILITY=80: it has to be 70 or 75"):
        cuda.override()


def test_a_mark_takes_tensors_of_any_kind(library):
    mark = devices.gpu_library()[0].blocksparse_mark
    with tf.Graph().as_default():
        marked = mark(tf.zeros([2, 3], tf.float16), [tf.zeros([1]), tf.zeros([4], tf.int32)], flush=8)
    assert marked.shape == [2, 3] and marked.dtype == np.float16
