"""The most memory that this process has held."""


def peak() -> int:
    """Bytes. Not ru_maxrss: that counts what the process it was forked from held, which hides what is measured."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
