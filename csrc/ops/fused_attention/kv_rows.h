// SPDX-License-Identifier: Apache-2.0
// The keys and values that the float kernel takes together: where they lie, and in float32 where it can not take them there.
#pragma once

#include "ops/fused_attention/fused_attention.h"
#include "ops/fused_attention/kernel.h"

namespace anynpu {

// Memory of one thread.
struct KvScratch {
  float *k, *v;                                    // [kFusedRows, padded size]
  float *k_scale, *k_offset, *v_scale, *v_offset;  // of codes: [padded size]
  int8_t* codes;                                   // one row of int4: [padded size]
};

// Rows of some kv heads of a sequence, a tile after the other. While the heads of a tile are taken, the rows of the tile to
// come are fetched, in the order of memory.
class KvRows {
 public:
  // All heads are taken as they lie if `in_place`, which takes_in_place allows. Of codes there is one head.
  KvRows(const FusedArgs& args, const FusedKernel& kernel, const KvScratch& scratch, const FusedSequence& sequence,
         int64_t first_head, int64_t heads, bool in_place);
  static bool takes_in_place(const FusedArgs& args);

  // Goes to the `count` rows from `column` on, with next_count behind them; both at most kFusedRows.
  void go_to(int64_t column, int64_t count, int64_t next_count);
  // The rows of a head, for a tile whose sizes are set. Heads come in their order.
  void load(int64_t head, FusedTile* tile);

 private:
  using Place = FusedPlace;
  // Keys or values, in bytes.
  struct View {
    const char* data;
    int64_t plane, row, head, size;
    explicit View(const anynpu_tensor& tensor);
    const char* at(Place place, int64_t index) const {
      return data + place.plane * plane + place.row * row + index * head;
    }
  };

  Place place(int64_t column) const { return place_of(args_, sequence_, column); }
  void look_ahead(FusedTile* tile);
  void load_row(Place from, int64_t head, const FusedTile& tile, float* k, float* v) const;
  void load_channels(int64_t head) const;
  void dequantise(const char* row, const anynpu_tensor& scale, const anynpu_tensor& offset, FusedCodes factors,
                  Place place, int64_t head, int64_t count, float* to) const;

  const FusedArgs& args_;
  const FusedKernel& kernel_;
  const KvScratch& scratch_;
  const FusedSequence& sequence_;
  const int64_t first_head_, heads_;
  const bool in_place_;
  const View k_, v_;
  int64_t count_ = 0;
  Place places_[kFusedRows];
  // What is fetched next.
  int64_t next_column_ = 0, next_end_ = 0, next_head_ = 0;
  Place next_place_ = {0, 0};
};

}  // namespace anynpu
