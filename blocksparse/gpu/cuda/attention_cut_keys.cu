// The side of the plan whose rows are keys, cut by segment numbers.
#include "cut.h"

KERNEL BOUNDS(kThreads, 1)
    attention_cut_keys(const int* query_segments, const int* key_segments, int* cut_spans, int* cut_columns,
                       int* cut_mask, int* cut_masks, int* cut_sources, const int* head_index, const int* residues,
                       const int* head_tiles, const int* rows, const int* row_count, const int* offset, const int* full,
                       const int* columns, const int* mask, const int* masks, int heads, int query_time, int key_time,
                       int tiles, int batches, int column_tiles, int mask_words) {
  cut_tiles({head_index, residues, head_tiles, rows, row_count, offset, full, columns, mask, masks},
            {cut_spans, cut_columns, cut_mask, cut_masks, cut_sources}, {key_segments, key_time},
            {query_segments, query_time}, heads, batches, column_tiles);
}
