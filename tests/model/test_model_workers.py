"""Two workers train what one trains, to rounding, and none waits for another for ever."""

import json
import os
import signal
import socket
import time

import numpy as np
from training_runs import STEPS, finish, metrics, run, start, train_command


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_two(out, steps, **env):
    workers = [f"localhost:{port}" for port in free_ports(2)]
    configs = [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} for index in (0, 1)
    ]
    return [start(train_command(out, steps), env={"TF_CONFIG": json.dumps(c), **env}) for c in configs]


def check(out, unbroken):
    single = np.array(metrics(unbroken), float)
    both = np.array(metrics(out), float)
    np.testing.assert_allclose(both, single, rtol=2e-4)
    assert (both[:, 2] > 0.05).all()  # the gradient's norm exceeds clip on every step


def test_a_stopped_worker_ends_the_other_and_both_resume(unbroken, tmp_path):
    workers = start_two(tmp_path, STEPS, WORKER_TIMEOUT="5")
    while not (tmp_path / "checkpoint.npz").exists():
        assert workers[0].poll() is None, finish(workers[0])
        time.sleep(0.02)
    workers[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    status, output = finish(workers[0], timeout=60)
    workers[1].kill()
    finish(workers[1])
    assert (
        status == 1
        and "worker 0 stops: worker 1" in output
        and "has not been heard of for 5 seconds" in output
    )
    assert time.monotonic() - began < 20
    for status, output in map(finish, start_two(tmp_path, STEPS)):
        assert status == 0, output
    check(tmp_path, unbroken)


MIRRORED = """
import sys, runpy
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from sparse_transformer import training
training.make_strategy = lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_two_devices_of_one_machine(unbroken, tmp_path):
    command = train_command(tmp_path, STEPS)
    run(command, "-c", f"import sys; sys.path.insert(0, {os.path.dirname(command[0])!r})\n" + MIRRORED)
    check(tmp_path, unbroken)
