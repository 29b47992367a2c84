"""The attention op on a real GPU: values, gradients, bits, placement, speed of the host side, faults."""

import threading

import numpy as np
import oracle
import pytest
import tensorflow as tf
from layouts import SEGMENTS, causal, ragged, segments

from blocksparse import BlocksparseTransformer
from blocksparse.fused import op
from blocksparse.native import devices
from sparse_attention import blocksparse_attention_impl, get_attn_mask

pytestmark = pytest.mark.gpu
EPSILON = {"float32": 2**-21, "float16": 2**-10, "bfloat16": 2**-7}
NAMES = ("out", "lse", "dq", "dk", "dv")


@pytest.fixture(autouse=True)
def on_the_gpu():
    """Nothing may fall back; float32 is exact unless a test says otherwise."""
    assert op.kernel_name() == "gpu"
    yield
    tf.config.experimental.enable_tensor_float_32_execution(False)


class Problem:
    """A transformer with inputs for it, and the truth in float64."""

    def __init__(
        self,
        block_size,
        blocks,
        heads,
        dims,
        dtype,
        callback=causal,
        order=1,
        batch=2,
        density=0.6,
        per_head=False,
        scale=0.3,
        layout=None,
        kv_heads=None,
        kind=None,
    ):
        generator = np.random.default_rng(0)
        if layout is None:
            layout = generator.random((heads, *blocks) if per_head else blocks) < density
        self.bst = BlocksparseTransformer(layout, block_size, heads, callback)
        self.visible = oracle.dense_mask(layout, block_size, callback, heads, order)
        self.order, self.dtype, self.scale, self.kv_heads = order, dtype, scale, kv_heads or heads
        self.segments = None
        if kind:
            self.segments, meeting = segments(generator, kind, batch, *self.visible.shape[1:])
            self.visible = self.visible & meeting
        (query_time, key_time), (head_dim, value_dim) = self.visible.shape[-2:], dims
        queries, keys = (query_time, heads), (key_time, self.kv_heads)
        shapes = (*queries, head_dim), (*keys, head_dim), (*keys, value_dim), (*queries, value_dim)
        self.q, self.k, self.v, self.dout = (
            tf.cast(generator.standard_normal((batch, rows, count * dim)), dtype)
            for rows, count, dim in shapes
        )
        self.dlse = tf.constant(generator.standard_normal((batch, heads, query_time)), tf.float32)

    def run(self, q=None, k=None, v=None, dout=None):
        """(out, lse, dq, dk, dv), in whatever mode the caller is."""
        inputs = [
            given if given is not None else mine for given, mine in zip((q, k, v), (self.q, self.k, self.v))
        ]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            settings = dict(scale=self.scale, order=self.order, with_lse=True, kv_heads=self.kv_heads)
            out, lse = self.bst.attention(*inputs, **settings, segment_ids=self.segments)
        return out, lse, *tape.gradient([out, lse], inputs, [self.dout if dout is None else dout, self.dlse])

    def check(self, results, epsilon=None):
        inputs = (x.numpy() for x in (self.q, self.k, self.v))
        truth = oracle.attention(*inputs, self.visible, self.scale, self.dout.numpy(), self.dlse.numpy())
        for name, got, want in zip(NAMES, results, truth, strict=True):
            allowed = epsilon or EPSILON["float32" if name == "lse" else self.dtype]
            oracle.assert_close(
                name, tf.cast(got, tf.float64), want, max(allowed, 2**-18 if name == "lse" else 0)
            )


def same_bits(first, second):
    for name, a, b in zip(NAMES, first, second, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes(), f"{name} differs"


DTYPES = ["float16", "bfloat16", "float32"]
SIZES = [(bs, (64, 64), dtype) for bs in (8, 16, 32, 64, 128) for dtype in DTYPES]
SIZES += [(32, (d, d), "float16") for d in (8, 24, 32, 40, 96, 128, 160, 256)]
SIZES += [
    (16, (64, 128), "float16"),
    (16, (128, 64), "bfloat16"),
    (32, (256, 256), "float32"),
    (8, (16, 8), "float32"),
]


@pytest.mark.parametrize("block_size, dims, dtype", SIZES)
def test_values_gradients_and_bits(block_size, dims, dtype):
    blocks = max(3, 384 // block_size)
    problem = Problem(block_size, (blocks, blocks), 2, dims, dtype, ragged)
    results = problem.run()
    problem.check(results)
    same_bits(results, problem.run())


SHAPES = {
    "rectangular": dict(blocks=(5, 9)),
    "wide and short": dict(blocks=(1, 17), batch=1),
    "per head": dict(blocks=(8, 8), heads=3, per_head=True),
    "mostly empty": dict(blocks=(9, 9), density=0.1, heads=3, per_head=True),
    "empty": dict(blocks=(4, 4), density=0.0),
    "order": dict(blocks=(12, 12), order=4),
    "order per head": dict(blocks=(12, 12), heads=3, order=[1, 2, 6]),
    "causal": dict(blocks=(12, 12), callback=causal, density=1.0, batch=3),
    "key heads": dict(blocks=(12, 12), callback=causal, density=1.0, heads=4, kv_heads=2),
    "key heads, per head": dict(blocks=(8, 8), heads=6, per_head=True, kv_heads=2),
    "key heads, order": dict(blocks=(12, 12), heads=4, order=4, kv_heads=1),
    "key heads, order per head": dict(blocks=(12, 12), heads=4, order=[1, 2, 2, 2], kv_heads=2),
    "negative scale": dict(blocks=(8, 8), scale=-0.3),
    "scale of zero": dict(blocks=(8, 8), scale=0.0),
}


@pytest.mark.parametrize("block_size, dtype", [(32, "float16"), (8, "float32")])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, block_size, dtype):
    options = dict(heads=2, callback=ragged) | SHAPES[name]
    problem = Problem(block_size, dims=(32, 32), dtype=dtype, **options)
    results = problem.run()
    problem.check(results)
    same_bits(results, problem.run())


IDLE = np.ones((4, 40, 40), bool)  # one head sees nothing, one in its last rows only
IDLE[0], IDLE[2, :35] = False, False
LONG_ROWS = {  # more than 300 keys a query: kernels and tiles of their own
    "causal": dict(callback=causal, density=1.0),
    "bfloat16": dict(dtype="bfloat16"),
    "dims 40": dict(dims=(40, 40)),
    "dims 72, 128": dict(dims=(72, 128)),
    "dims 8": dict(dims=(8, 8), block_size=8, blocks=(160, 160)),
    "rectangular": dict(blocks=(35, 51), dims=(32, 32)),
    "a few long rows": dict(blocks=(1, 40), batch=1),
    "per head": dict(heads=3, per_head=True, block_size=64, blocks=(18, 18)),
    "idle heads": dict(heads=4, layout=IDLE),
    "order": dict(order=4, block_size=8, blocks=(160, 160)),
    "order per head": dict(heads=3, order=[1, 2, 8]),
    "key heads": dict(callback=causal, density=1.0, heads=4, kv_heads=1),
    "key heads, per head": dict(heads=4, per_head=True, kv_heads=2, dims=(64, 64)),
    "negative scale": dict(scale=-0.3),
    "scale of zero": dict(scale=0.0),
}


WINDOW = np.tri(72, dtype=bool) & ~np.tri(72, k=-4, dtype=bool)


@pytest.mark.parametrize("dims", [(64, 64), (64, 40), (128, 128)])
def test_programs_that_take_several_row_tiles(dims):
    """288 row tiles: more than an H100 runs side by side."""
    problem = Problem(32, (72, 72), 4, dims, "float16", ragged, batch=4, layout=WINDOW)
    results = problem.run()
    problem.check(results)
    same_bits(results, problem.run())


SEGMENTED = {  # plain kernels, closed ones, and warp roles that take one row tile or several
    "plain, order": dict(block_size=8, blocks=(24, 24), dtype="float32", order=4),
    "order a head": dict(block_size=32, blocks=(12, 12), dtype="float16", order=[1, 2]),
    "closed": dict(block_size=32, blocks=(16, 16), dtype="float16", order=8, layout=np.eye(16, dtype=bool)),
    "walk": dict(block_size=32, blocks=(72, 72), dtype="float16", layout=WINDOW),
    "long rows": dict(block_size=32, blocks=(40, 40), dtype="bfloat16", density=1.0, callback=causal),
}


@pytest.mark.parametrize("kind", SEGMENTS)
@pytest.mark.parametrize("name", SEGMENTED)
def test_segments(name, kind):
    problem = Problem(**dict(heads=2, dims=(64, 64), callback=ragged) | SEGMENTED[name], kind=kind)
    results = problem.run()
    problem.check(results)
    same_bits(results, problem.run())
    if kind == "padded":
        same_bits(results, tf.function(problem.run, jit_compile=True)())


UNFILLED = {  # with a plan of more rows than the tensors have
    "all": dict(attn_mode="all"),
    "local": dict(attn_mode="local", local_attn_ctx=45),
    "merged": dict(attn_mode="local+strided", local_attn_ctx=12),
    "fixed": dict(attn_mode="fixed", local_attn_ctx=100, num_verts=2, vertsize=1, kv_heads=2),
}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "dtype, dim, time", [("float16", 64, 331), ("float32", 16, 101), ("bfloat16", 128, 1000)]
)
@pytest.mark.parametrize("name", UNFILLED)
def test_lengths_that_fill_no_block(name, dtype, dim, time, apart):
    """Nothing behind the tensors' end is read or written. apart: with segments."""
    pattern, generator = UNFILLED[name], np.random.default_rng(0)
    kv_heads = pattern.get("kv_heads", 4)
    inputs = [
        tf.cast(generator.standard_normal((2, time, heads * dim)), dtype) for heads in (4, kv_heads, kv_heads)
    ]
    dout = tf.cast(generator.standard_normal((2, time, 4 * dim)), dtype)
    ids, meeting = segments(generator, "sorted", 2, time, time) if apart else (None, True)

    def run():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            out = blocksparse_attention_impl(*inputs, 4, segment_ids=ids, **pattern)
        return [out, *tape.gradient(out, inputs, dout)]

    masks = (
        get_attn_mask(time, **{each: pattern[each] for each in pattern if each != "kv_heads"})[0].numpy() > 0
    )
    q, k, v, slope = (tf.cast(x, tf.float64).numpy() for x in (*inputs, dout))
    out, _, *gradients = oracle.attention(
        q, k, v, masks[np.arange(4) % len(masks)] & meeting, dim**-0.5, slope
    )
    results = run()
    for which, got, want in zip(("out", "dq", "dk", "dv"), results, [out, *gradients], strict=True):
        oracle.assert_close(which, tf.cast(got, tf.float64), want, EPSILON[dtype])
    assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(results, run(), strict=True))


@pytest.fixture(params=[192, 64])
def own_tiles(monkeypatch, request):
    """Every plan gets the row tiles of Hopper's dense rows, or those of neighbours that see different columns; float32,
    which has no warp roles, in narrower columns.
    """

    def tiles(dtype, head_dim, value_dim, *_):
        rows = request.param
        if dtype == tf.float32:
            return (rows, 32), (rows, 32)
        if rows == 64:
            return (64, 128), (64, 128)
        return (192, 128), (192 if max(head_dim, value_dim) <= 32 else 128, 64)

    monkeypatch.setattr(op, "_tiles", tiles)


@pytest.mark.parametrize(
    "block_size, dim, dtype", [(32, 32, "float16"), (8, 64, "bfloat16"), (8, 32, "float32")]
)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_in_tiles_of_their_own(own_tiles, name, block_size, dim, dtype):
    options = dict(heads=2, callback=ragged) | SHAPES[name]
    problem = Problem(block_size, dims=(dim, dim), dtype=dtype, **options)
    results = problem.run()
    problem.check(results)
    same_bits(results, problem.run())
    same_bits(results, tf.function(problem.run, jit_compile=True)())


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dtype, dim", [("float16", 64), ("bfloat16", 32), ("float32", 16)])
@pytest.mark.parametrize("name", UNFILLED)
def test_lengths_in_tiles_of_their_own(own_tiles, name, dtype, dim, apart):
    test_lengths_that_fill_no_block(name, dtype, dim, 331, apart)


@pytest.mark.parametrize("kind", [None, *SEGMENTS])
@pytest.mark.parametrize("dtype, dim", [("float16", 64), ("bfloat16", 128), ("float16", 32)])
def test_neighbours_that_see_different_columns(dtype, dim, kind):
    """What Hopper has small tiles for, as the library chooses them; on other cards any."""
    problem = Problem(64, (48, 48), 2, (dim, dim), dtype, causal, density=0.25, kind=kind)
    assert problem.bst._attention.scatter() > 1.5 and problem.bst._attention.work > 300
    results = problem.run()
    problem.check(results)
    same_bits(results, problem.run())


@pytest.mark.parametrize("name", LONG_ROWS)
def test_long_rows(name):
    options = dict(block_size=32, blocks=(40, 40), heads=2, dims=(64, 64), dtype="float16", callback=ragged)
    problem = Problem(**options | dict(density=0.9) | LONG_ROWS[name])
    results = problem.run()
    problem.check(results)
    same_bits(results, problem.run())


def test_tensor_float_32_follows_tensorflow(cuda_kernels):
    """Where there is such a thing: from compute capability 8.0 on."""
    problem = Problem(32, (8, 8), 2, (64, 64), "float32", ragged)
    exact = problem.run()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    rounded = problem.run()
    problem.check(rounded, epsilon=2**-10)
    assert (exact[0].numpy().tobytes() == rounded[0].numpy().tobytes()) == cuda_kernels


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("blocks, dim, dtype", [(8, 32, "float32"), (40, 64, "float16")])
def test_poison_in_k_stays_with_the_queries_that_see_it(blocks, dim, dtype, poison):
    problem = Problem(32, (blocks, blocks), 2, (dim, dim), dtype, ragged, density=0.9)
    clean = problem.run()
    k = problem.k.numpy()
    k[0, 77, :dim] = poison  # the first head of the first batch row
    dirty = problem.run(k=tf.constant(k))
    touched = np.zeros(clean[1].shape, bool)
    touched[0, 0] = problem.visible[0][:, 77]
    for index in (0, 2):  # out, dq
        before, after = (np.split(x.numpy(), 2, axis=2) for x in (clean[index], dirty[index]))
        for head in range(2):
            calm = ~touched[:, head]
            np.testing.assert_array_equal(before[head][calm], after[head][calm])
            assert np.isnan(after[head][~calm]).any(axis=-1).all()


@pytest.mark.parametrize("name", ["q", "v", "dout"])
def test_poison_stays_in_its_head_and_batch_row(name):
    problem = Problem(32, (8, 8), 2, (32, 32), "float16", ragged)
    clean = problem.run()
    x = getattr(problem, name).numpy()
    x[1, 100, 40] = np.nan  # the second head of the second batch row
    dirty = problem.run(**{name: tf.constant(x)})
    for index in (0, 2, 3, 4):
        before, after = clean[index].numpy(), dirty[index].numpy()
        np.testing.assert_array_equal(before[0], after[0])
        np.testing.assert_array_equal(before[1, :, :32], after[1, :, :32])
    assert any(np.isnan(dirty[index].numpy()[1, :, 32:]).any() for index in (0, 2, 3, 4))


def test_jit_compile_gives_the_same_bits():
    for dtype in ("float16", "float32"):
        problem = Problem(32, (8, 8), 2, (64, 64), dtype, ragged, order=2)
        same_bits(problem.run(), tf.function(problem.run, jit_compile=True)())


def test_placement():
    problem = Problem(32, (8, 8), 2, (64, 64), "float32", ragged)
    with tf.device("CPU:0"):
        on_cpu = tf.function(problem.run)()
    assert "CPU" in on_cpu[0].device and "GPU" in problem.run()[0].device
    problem.check(on_cpu)


def test_saved_model(fresh_python, tmp_path):
    problem = Problem(32, (8, 8), 2, (64, 64), "float16", ragged)

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, *problem.q.shape[1:]], tf.float16)] * 3)
        def attend(self, q, k, v):
            return problem.bst.attention(q, k, v, scale=0.3)

    tf.saved_model.save(Module(), str(tmp_path / "model"))
    np.savez(tmp_path / "inputs.npz", q=problem.q, k=problem.k, v=problem.v, out=problem.run()[0])
    program = """
        import sys, numpy as np, tensorflow as tf, blocksparse
        folder = sys.argv[1]
        data = np.load(folder + "/inputs.npz")
        out = tf.saved_model.load(folder + "/model").attend(*(tf.constant(data[name]) for name in "qkv"))
        assert "GPU" in out.device, out.device
        assert out.numpy().tobytes() == data["out"].tobytes()
    """
    fresh_python(program, tmp_path)


def test_a_model_saved_without_a_gpu_runs_on_one(fresh_python, tmp_path):
    """Its plan has tiles that fit any GPU: other kernels than a model that was made here."""
    save = """
        import sys, numpy as np, tensorflow as tf
        from blocksparse import BlocksparseTransformer
        assert not tf.config.list_physical_devices("GPU")
        bst = BlocksparseTransformer(np.tri(8, dtype=bool), 32, 2)
        module = tf.Module()
        module.w = tf.Variable(tf.ones([128], tf.float16))
        spec = [tf.TensorSpec([None, 256, 128], tf.float16)]
        module.f = tf.function(lambda x: bst.attention(x * module.w, x, x), spec)
        tf.saved_model.save(module, sys.argv[1])
    """
    run = """
        import sys, blocksparse, numpy as np, tensorflow as tf
        module = tf.saved_model.load(sys.argv[1])
        x = tf.constant(np.random.default_rng(0).standard_normal((2, 256, 128)), tf.float16)
        results = {}
        for device in ("CPU:0", "GPU:0"):
            with tf.device(device), tf.GradientTape() as tape:
                y = module.f(x)
                results[device] = y.numpy(), tape.gradient(y, module.w).numpy()
        for on_cpu, on_gpu in zip(*results.values()):
            np.testing.assert_allclose(on_cpu, on_gpu, rtol=0, atol=4e-3 * np.abs(on_cpu).max())
    """
    fresh_python(save, tmp_path / "model", CUDA_VISIBLE_DEVICES="-1")
    fresh_python(run, tmp_path / "model")


def test_a_plan_too_large_for_a_constant(monkeypatch):
    problem = Problem(32, (8, 8), 2, (64, 64), "float16", ragged)
    monkeypatch.setattr(op, "_LARGEST_CONSTANT", 0)
    step = tf.function(problem.run).get_concrete_function()
    assert "BlocksparsePlan" in {op.type for op in step.graph.get_operations()}
    same_bits(problem.run(), step())


def test_two_devices_with_threads_of_their_own(fresh_python):
    """Two virtual devices have streams, allocators and plans of their own; one card is enough for that."""
    program = """
        import threading, numpy as np, tensorflow as tf
        half = tf.config.LogicalDeviceConfiguration(memory_limit=2048)
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("GPU")[0], [half, half])
        from blocksparse import BlocksparseTransformer
        bst = BlocksparseTransformer(np.tri(8, dtype=bool), 32, 2)
        x = np.random.default_rng(0).standard_normal((2, 256, 64)).astype(np.float16)
        results = {}

        def work(device, number):
            with tf.device(device):
                y = tf.constant(x)
                for _ in range(20):
                    with tf.GradientTape() as tape:
                        tape.watch(y)
                        out = bst.attention(y, y, y)
                    gradient = tape.gradient(out, y)
                assert device in out.device and device in gradient.device
                results[device, number] = out.numpy().tobytes() + gradient.numpy().tobytes()

        threads = [threading.Thread(target=work, args=(f"GPU:{n % 2}", n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(len(results), len(set(results.values())))
    """
    assert fresh_python(program) == "4 1"


def test_without_triton_compiled_kernels_serve(fresh_python, tmp_path, cuda_kernels):
    if cuda_kernels:
        pytest.skip("these kernels are compiled without Triton")
    program = """
        import sys
        if sys.argv[1] == "without":
            sys.modules["triton"] = None
        import numpy as np, tensorflow as tf
        from blocksparse import BlocksparseTransformer
        from blocksparse.fused import op
        from sparse_attention import blocksparse_attention_impl

        def attend(width):
            x = tf.cast(tf.random.stateless_normal([1, 64, width], [1, 2]), tf.float16)
            with tf.GradientTape() as tape:
                tape.watch(x)
                out = BlocksparseTransformer(np.ones((2, 2), bool), 32, 1).attention(x, x, x)
            return hash(out.numpy().tobytes() + tape.gradient(out, x).numpy().tobytes())

        print(op.kernel_name(), attend(64))
        x = tf.cast(tf.random.stateless_normal([2, 64, 64], [3, 4]), tf.float16)
        whole = blocksparse_attention_impl(x, x, x, 1, "all")
        if sys.argv[1] == "without":
            x = x[:, :50]  # kernels for tensors shorter than the plan are not there: copies run
            print(np.array_equal(whole[:, :50], blocksparse_attention_impl(x, x, x, 1, "all")))
            try:
                attend(32)
            except tf.errors.NotFoundError as error:
                print(error.message)
    """
    settings = dict(BLOCKSPARSE_CACHE=str(tmp_path), PYTHONHASHSEED="0")
    first = fresh_python(program, "with", **settings)
    again, shorter, message = fresh_python(program, "without", **settings).split("\n", 2)
    assert first == again and first.startswith("gpu ") and shorter == "True"
    for part in ("head_dim 32", "Triton is not installed", "compile.py --out FOLDER forward-f16-d32"):
        assert part in message, message


def test_threads_and_graphs():
    problems = [
        Problem(bs, (8, 8), 2, (32, 32), "float16", ragged, order=o) for bs, o in ((16, 1), (32, 2), (64, 1))
    ]
    want = [problem.run() for problem in problems]
    failures = []

    def work(problem, expected):
        try:
            for _ in range(20):
                same_bits(expected, problem.run())
        except Exception as error:
            failures.append(error)

    running = [threading.Thread(target=work, args=pair) for pair in zip(problems * 2, want * 2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failures, failures[0]


def test_more_than_two_to_the_31_elements():
    time_steps, heads, batch = 65536, 16, 33
    near = np.eye(512, dtype=bool) | np.eye(512, k=-1, dtype=bool)
    bst = BlocksparseTransformer(near, 128, heads, causal)
    x = tf.random.stateless_normal([batch, time_steps, heads * 64], [1, 2], dtype=tf.float16)
    assert np.prod(x.shape) > 2**31

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = bst.attention(x, x, x)
        return out, tape.gradient(out, x, x)

    try:
        whole_batch = step(x)
    except tf.errors.ResourceExhaustedError:
        pytest.skip("the card has too little memory")
    for whole, alone in zip(whole_batch, step(x[-1:])):
        assert tf.reduce_all(whole[-1:] == alone)


def test_a_failing_compiler_is_named(fresh_python, tmp_path):
    program = """
        import ctypes, numpy as np, tensorflow as tf
        from blocksparse import BlocksparseTransformer
        from blocksparse.native import devices
        x = tf.random.normal([1, 64, 64], dtype=tf.float16)
        devices.gpu_library()[1].blocksparse_gpu_configure(b"/nowhere", b"", b"false")
        try:
            BlocksparseTransformer(np.ones((2, 2), bool), 32, 1).attention(x, x, x)
        except tf.errors.InternalError as error:
            print(error.message)
    """
    message = fresh_python(program, BLOCKSPARSE_CACHE=str(tmp_path))
    for part in (
        "forward",
        "f16",
        "batch 1",
        "heads 1",
        "time 64 x 64",
        "head_dim 64",
        "sm_",
        "compiling forward-f16-d64",
    ):
        assert part in message, message


def test_a_failing_launch_is_named(fresh_python, tmp_path):
    program = """
        import pathlib, re, sys, numpy as np, tensorflow as tf
        from blocksparse import BlocksparseTransformer
        x = tf.random.normal([1, 64, 64], dtype=tf.float16)
        attend = lambda: BlocksparseTransformer(np.ones((2, 2), bool), 32, 1).attention(x, x, x)
        if sys.argv[1] == "compile":
            attend()
        else:
            [path] = pathlib.Path(sys.argv[2]).glob("kernels-*/forward-*/manifest")
            manifest = path.read_text()
            path.write_text(re.sub(r"(launch \\S+ \\S+ \\S+ \\d+) \\d+", r"\\1 999999", manifest))  # of shared memory
            try:
                attend()
            except tf.errors.InternalError as error:
                print(error.message)
    """
    fresh_python(program, "compile", BLOCKSPARSE_CACHE=str(tmp_path))
    message = fresh_python(program, "run", tmp_path, BLOCKSPARSE_CACHE=str(tmp_path))
    for part in (
        "forward",
        "f16",
        "time 64 x 64",
        "head_dim 64",
        "sm_",
        "999999 bytes of shared memory",
        "CUDA driver",
    ):
        assert part in message, message


def test_a_damaged_plan_is_rejected():
    x = tf.zeros([1, 64, 32], tf.float16)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the plan is damaged"):
        devices.load_kernels().blocksparse_attention(
            x, x, x, tf.zeros([128], tf.int32), segments=[], heads=1, scale=1.0
        )
