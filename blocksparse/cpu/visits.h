// What a row tile visits: all column tiles that the plan lists, or, where positions have segment numbers, those that
// hold a number of the row tile's; and under which mask.
#pragma once

#include <algorithm>
#include <vector>

#include "plan.h"
#include "rows.h"

namespace blocksparse {

class Visits {
 public:
  explicit Visits(const TilePlan& tiles) : tiles_(tiles), mask_(int64_t{tiles.row_tile} * tiles.mask_words()) {}

  // Starts a row tile. rows, columns: segment numbers of the tensors' rows that its rows and columns are, negative
  // where these meet nobody; data is null where positions have none.
  void start(int32_t tile, const HeadRows<const int32_t>& rows, const HeadRows<const int32_t>& columns) {
    tile_ = tile, column_numbers_ = columns, visited_.clear();
    parted_ = columns.data != nullptr;
    if (parted_) rows_.read(rows, {tiles_.row_granules(tile), tiles_.granule}, tiles_.row_count[tile], -1);
    for (int32_t column = tiles_.offset[tile]; column < tiles_.offset[tile + 1]; ++column) {
      if (!parted_ || read(column).meets(rows_)) visited_.push_back(column);
    }
  }

  int32_t size() const { return static_cast<int32_t>(visited_.size()); }
  int32_t operator[](int32_t visit) const { return visited_[visit]; }

  // Who sees whom in a visited tile, null where every row sees every column; valid until the next call.
  const uint32_t* mask(int32_t column) {
    const uint32_t* planned = tiles_.is_full(tile_, column) ? nullptr : tiles_.mask_of(column);
    if (!parted_) return planned;
    const Numbers& columns = read(column);
    if (columns.least == columns.greatest && rows_.least == rows_.greatest) return planned;  // they meet: all are equal
    const int32_t words = tiles_.mask_words();
    for (int32_t row = 0; row < rows_.count; ++row) {
      uint32_t* to = mask_.data() + row * words;
      if (row > 0 && rows_.numbers[row] == rows_.numbers[row - 1]) {
        std::copy_n(to - words, words, to);  // documents are long: most rows are of the segment of the row before
      } else {
        for (int32_t word = 0; word < words; ++word) to[word] = columns.equal_to(rows_.numbers[row], word * 32);
      }
    }
    if (planned == nullptr) return mask_.data();
    for (int32_t i = 0; i < rows_.count * words; ++i) mask_[i] &= planned[i];
    return mask_.data();
  }

 private:
  // Segment numbers of a tile's rows or columns, and their range.
  struct Numbers {
    int32_t numbers[kMostRows];
    int32_t count, least, greatest;

    // nobody: in the place of negative numbers, one that those of the other side do not have.
    void read(const HeadRows<const int32_t>& from, Granules granules, int32_t rows, int32_t nobody) {
      count = rows;
      least = INT32_MAX, greatest = INT32_MIN;  // where no row is there they meet no others
      for_rows(
          from, granules, 0, rows,
          [this, nobody](int32_t i, const int32_t* at) {
            const int32_t number = *at < 0 ? nobody : *at;
            numbers[i] = number, least = std::min(least, number), greatest = std::max(greatest, number);
          },
          [this](int32_t i) { numbers[i] = 0; });
    }

    // Whether the ranges overlap: numbers of one segment may stand anywhere, but rarely stand far apart.
    bool meets(const Numbers& other) const { return least <= other.greatest && other.least <= greatest; }

    // Bit c: whether column first + c has `number`.
    uint32_t equal_to(int32_t number, int32_t first) const {
      uint32_t bits = 0;
      for (int32_t c = 0; c < std::min(32, count - first); ++c) bits |= uint32_t{numbers[first + c] == number} << c;
      return bits;
    }
  };

  const Numbers& read(int32_t column) {
    columns_.read(column_numbers_, {tiles_.granules(column), tiles_.granule}, tiles_.column_tile, -2);
    return columns_;
  }

  const TilePlan& tiles_;
  int32_t tile_ = 0;
  bool parted_ = false;  // positions have segment numbers
  HeadRows<const int32_t> column_numbers_;
  Numbers rows_, columns_;
  std::vector<int32_t> visited_;
  std::vector<uint32_t> mask_;  // [rows][words]
};

}  // namespace blocksparse
