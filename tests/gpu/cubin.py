"""What ptxas made of a kernel, read out of a cubin for compute capability 7.0 or 7.5 without NVIDIA's tools.

A cubin is an ELF file. Section .nv.info has registers and stack frames as attributes; an instruction takes 16 bytes,
whose lowest 12 bits are its operation.
"""

import struct

HMMA = {0x236, 0x23C}  # the tensor cores' HMMA.884 (7.0) and HMMA.1688 (7.5)
BRANCH = 0x947
REGISTERS, FRAME = 0x2F, 0x11  # attributes of .nv.info, each (kernel, number)


def sections(cubin):
    """{name: content} of the ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    count, names = struct.unpack_from("<HH", cubin, 0x3C)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + 64 * number) for number in range(count)]
    strings = headers[names][4]
    found = {}
    for name, kind, _, _, offset, size in headers:
        start = strings + name
        found[cubin[start : cubin.index(b"\0", start)].decode()] = (
            b"" if kind == 8 else cubin[offset : offset + size]
        )
    return found


def numbers(cubin):
    """(registers, bytes of stack frame) of a thread of the cubin's one kernel."""
    info, at, found = sections(cubin)[".nv.info"], 0, {}
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:  # the other forms keep their value in `size`
            if attribute in (REGISTERS, FRAME):
                found[attribute] = struct.unpack_from("<II", info, at)[1]
            at += size
    return found[REGISTERS], found[FRAME]


def operations(cubin):
    """The operation of every instruction, and where a branch leads (else None)."""
    (code,) = (content for name, content in sections(cubin).items() if name.startswith(".text."))
    for number, (low, high) in enumerate(struct.iter_unpack("<QQ", code)):
        target = None
        if low & 0xFFF == BRANCH:  # a signed distance in units of 4 bytes, from the next instruction
            distance = (low >> 34 | high << 30) & (1 << 48) - 1
            target = number + 1 + (distance - (distance >> 47 << 48)) // 4
        yield low & 0xFFF, target


def tensor_share(cubin):
    """(tensor core instructions, share of them among the instructions of the innermost loops that have any)."""
    steps = list(operations(cubin))
    tensor = [operation in HMMA for operation, _ in steps]
    back = {
        (target, number + 1)
        for number, (_, target) in enumerate(steps)
        if target is not None and target <= number
    }
    loops = [loop for loop in back if any(tensor[slice(*loop)])]
    inner = [
        (first, last)
        for first, last in loops
        if not any(first <= start and end <= last and (start, end) != (first, last) for start, end in loops)
    ]
    slots = sum(last - first for first, last in inner)
    return sum(tensor), sum(sum(tensor[slice(*loop)]) for loop in inner) / slots if slots else 0.0
