"""Two workers train what one trains, to rounding, and none waits for another for ever."""

import json
import os
import re
import signal
import socket
import time

import numpy as np
import pytest
from sparse_transformer.cluster import Cluster
from sparse_transformer.watchdog import Watchdog
from training_runs import STEPS, arrays, finish, metrics, run, start, train_command


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_two(out, steps, between=lambda first: None, **env):
    """Both workers of a training; between(the first of them) is called before the other starts."""
    workers, started = [f"localhost:{port}" for port in free_ports(2)], []
    for index in (0, 1):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        started += [start(train_command(out, steps), env={"TF_CONFIG": json.dumps(config), **env})]
        between(started[0])
    return started


def check(out, unbroken):
    single = np.array(metrics(unbroken), float)
    both = np.array(metrics(out), float)
    np.testing.assert_allclose(both, single, rtol=2e-4)
    assert (both[:, 2] > 0.05).all()  # the gradient's norm exceeds clip on every step


@pytest.mark.thorough
def test_a_stopped_worker_ends_the_other_and_both_resume(unbroken, tmp_path):
    limit = 20  # a loaded machine imports and compiles with seconds between the two
    workers = start_two(tmp_path, STEPS, WORKER_TIMEOUT=str(limit))
    while not (tmp_path / "checkpoint.npz").exists():
        assert workers[0].poll() is None, finish(workers[0])
        time.sleep(0.02)
    workers[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    status, output = finish(workers[0])
    workers[1].kill()
    finish(workers[1])
    silent = re.search(r"worker 0 stops: worker 1 .* has not been heard of for (\d+) seconds", output)
    assert status == 1 and silent, output
    assert 3 <= int(silent[1]) <= limit  # TensorFlow's own heartbeat may notice before the limit
    assert time.monotonic() - began < 60  # what the limit is without WORKER_TIMEOUT
    for status, output in map(finish, start_two(tmp_path, STEPS)):
        assert status == 0, output
    check(tmp_path, unbroken)


def lone_worker(out, **env):
    port, other = free_ports(2)
    cluster = {"worker": [f"localhost:{port}", f"localhost:{other}"]}
    config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}})
    return start(train_command(out, STEPS), env={"TF_CONFIG": config, **env}), other


def test_a_lone_worker_says_whom_it_waits_for_and_ends(tmp_path):
    worker, other = lone_worker(tmp_path / "run", WORKER_TIMEOUT="3")
    status, output = finish(worker, timeout=60)
    name = rf"worker 1 \(localhost, UDP port {other}\)"
    assert re.search(rf"worker 0 waits for {name} since \d\d:\d\d:\d\d, for 3 seconds at most", output)
    assert re.search(rf"worker 0 stops: {name} has not been heard of for 3 seconds", output)
    assert status == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("number, name", [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_lone_worker_ends_on_signals(number, name, tmp_path):
    worker, _ = lone_worker(tmp_path / "run")
    assert "waits for" in worker.stdout.readline()
    worker.send_signal(number)
    status, output = finish(worker, timeout=30)
    assert status == 128 + number
    assert output.strip() == f"train.py: stopped by {name} while it waited for other workers"


@pytest.mark.parametrize("seconds", ["soon", "0", "-3", "nan", "inf", "1e999"])
def test_a_time_limit_that_is_none_is_refused(seconds, tmp_path):
    """Whether there are other workers or not: whoever sets it is told now, not on the day that there are."""
    status, output = finish(start(train_command(tmp_path / "run", 1), env={"WORKER_TIMEOUT": seconds}))
    assert status == 1 and not (tmp_path / "run").exists()
    assert output.startswith(
        f"train.py: the environment variable WORKER_TIMEOUT is {seconds!r}. Wanted: seconds"
    )
    assert "Traceback" not in output


def test_what_is_no_message_of_a_worker_is_ignored():
    first, second, stranger = free_ports(3)
    job = Cluster((("127.0.0.1", first), ("127.0.0.1", second)), 0)
    watchdog = Watchdog(job)
    assert watchdog.socket.getsockname() == ("127.0.0.1", first)  # where the job says, not everywhere
    peer, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    peer.bind(("127.0.0.1", second))
    other.bind(("127.0.0.1", stranger))
    bad = [
        b"", b"\xff\xfe", b"{", b"3", b"null", b"[]", b"[1, 2]", b"[1, 2, 3, 4]", b'["1", 2, true]', b"[1, -1, true]",
        b"[1, 1e9, true]", b"[true, 1, true]", b"[0, 1, true]", b"[7, 1, true]", b"[{}, 1, true]", b"[" * 900,
    ]  # fmt: skip
    for message in bad:
        peer.sendto(message, ("127.0.0.1", first))
    other.sendto(b"[1, 5, true]", ("127.0.0.1", first))  # right, but from nobody of the job
    time.sleep(0.2)
    assert watchdog.heard == {}
    peer.sendto(b"[1, 5, true]", ("127.0.0.1", first))
    watchdog.gather()
    assert watchdog.heard[1][1] == 5
    watchdog.close()
    for each in (peer, other):
        each.close()


def test_a_late_worker_is_waited_for_and_a_signal_to_one_ends_both_at_one_step(tmp_path):
    waiting = []

    def until_it_waits(first):
        if not waiting:
            waiting.append(first.stdout.readline())

    workers = start_two(tmp_path, 4000, until_it_waits)
    assert re.match(r"worker 0 waits for worker 1 .* for 60 seconds at most", waiting[0])
    while not (tmp_path / "checkpoint.npz").exists():
        assert workers[0].poll() is None, finish(workers[0])
        time.sleep(0.02)
    workers[1].send_signal(signal.SIGTERM)
    (chief, said), (other, heard) = map(finish, workers)
    assert chief == other == 128 + signal.SIGTERM, said + heard
    step = int(re.search(r"train\.py: stopped by another worker after step (\d+)", said)[1])
    assert f"stopped by SIGTERM after step {step}" in heard
    assert int(arrays(tmp_path)["step"]) == step == len(metrics(tmp_path))


MIRRORED = """
import atexit, os, sys, runpy, signal
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from sparse_transformer import checkpoint, training
training.make_strategy = lambda _: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
calls, all_reduce = [], tf.distribute.ReplicaContext.all_reduce
def counted(context, *arguments, **options):
    if context.num_replicas_in_sync > 1:
        calls.append(arguments)
    return all_reduce(context, *arguments, **options)
tf.distribute.ReplicaContext.all_reduce = counted
atexit.register(lambda: print(f"{len(calls)} calls of all_reduce"))
save = checkpoint.Writer.save
def save_and_stop(self, step, variables):
    save(self, step, variables)
    if step == 4:
        os.kill(os.getpid(), signal.SIGTERM)
checkpoint.Writer.save = save_and_stop
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_two_devices_of_one_machine_and_one_goes_on(unbroken, tmp_path):
    command = train_command(tmp_path, STEPS)
    two = "-c", f"import sys; sys.path.insert(0, {os.path.dirname(command[0])!r})\n" + MIRRORED
    status, output = finish(start(command, *two))
    assert status == 128 + signal.SIGTERM, output
    assert (
        "4 calls of all_reduce" in output
    )  # of each replica the step's, and the sum that compares checkpoints
    assert int(arrays(tmp_path)["step"]) in (4, 5)  # the signal may come in after the step was looked at
    run(command)
    check(tmp_path, unbroken)
