// float16: stored in shared memory as it is in memory.
#pragma once

typedef u16 Element;  // in global memory
typedef u16 Stored;   // in shared memory

DEVICE float value_of(Element x) { return half_to_float(x); }
DEVICE bool finite(Stored x) { return (x & 0x7c00) != 0x7c00; }

// One chunk of global memory into shared memory, with `sign` on every number, and back.
DEVICE void put(Stored* to, Chunk chunk, bool negative) {
  UNROLL for (int i = 0; i < 4; ++i) chunk.word[i] ^= negative ? 0x80008000u : 0u;
  *reinterpret_cast<Chunk*>(to) = chunk;
}
DEVICE Chunk take(const Stored* from) { return *reinterpret_cast<const Chunk*>(from); }
DEVICE void put_pair(Stored* to, float first, float second) { *reinterpret_cast<u32*>(to) = pack(first, second); }
