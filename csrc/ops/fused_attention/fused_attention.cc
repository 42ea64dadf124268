// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/fused_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/strided.h"

namespace anynpu {

#define ANYNPU_KERNEL(tier) extern const FusedKernel fused_attention_##tier;
#include "ops/fused_attention/kernels.def"
#undef ANYNPU_KERNEL

namespace {

constexpr const FusedKernel* kKernels[] = {
#define ANYNPU_KERNEL(tier) &fused_attention_##tier,
#include "ops/fused_attention/kernels.def"
#undef ANYNPU_KERNEL
};

constexpr const char* kOp = "fused_attention";
constexpr int64_t kBlockQueries = 64;              // of one kv head, that share a work item
constexpr int64_t kGrain = 1 << 16;                // products a thread
constexpr int64_t kMost = 1 << 16;                 // heads, and values of one
constexpr int64_t kEverywhere = int64_t{1} << 61;  // from a row to any column, and sums of such stay in range
constexpr float kHidden = -std::numeric_limits<float>::infinity();
using Args = anynpu_fused_attention_args;

long long wide(int64_t value) { return value; }

int64_t batch_size(const Args& args) { return present(args.q_lengths) ? args.q_lengths.shape[0] : args.q.shape[0]; }
int64_t q_heads(const Args& args) { return args.q.shape[2]; }
int64_t kv_heads(const Args& args) { return args.k.shape[2]; }
bool is_paged(const Args& args) { return present(args.block_table); }
bool is_packed(const Args& args) { return args.packed != 0; }
bool has_codes(const Args& args) { return args.k.dtype == ANYNPU_INT8; }
int64_t rope_size(const Args& args) { return present(args.q_rope) ? args.q_rope.shape[3] : 0; }
// Rows that one sequence can have.
int64_t capacity(const Args& args) {
  return is_paged(args) ? args.block_table.shape[1] * args.k.shape[1] : args.k.shape[1];
}

int32_t check_view(const char* name, const anynpu_tensor& tensor, std::initializer_list<int32_t> dtypes, int ndim,
                   Access access = Access::read) {
  ANYNPU_TRY(check_required(kOp, name, tensor));
  if (std::find(dtypes.begin(), dtypes.end(), tensor.dtype) == dtypes.end()) {
    return fail(ANYNPU_BAD_DTYPE, "%s: %s must be %s%s, got %s", kOp, name, dtype_name(*dtypes.begin()),
                dtypes.size() > 1 ? " or another of its kind" : "", dtype_name(tensor.dtype));
  }
  if (tensor.format != ANYNPU_ND) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must be ND, got format %d", kOp, name, tensor.format);
  }
  if (tensor.ndim != ndim) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have %d axes, got shape %s", kOp, name, ndim, shape_text(tensor));
  }
  return check_strides(kOp, name, tensor, access);
}

// A view whose last axis holds the values of one head.
int32_t check_heads(const char* name, const anynpu_tensor& tensor, std::initializer_list<int32_t> dtypes,
                    Access access = Access::read) {
  ANYNPU_TRY(check_view(name, tensor, dtypes, 4, access));
  if (tensor.shape[2] < 1 || tensor.shape[3] < 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have heads with values, got shape %s", kOp, name, shape_text(tensor));
  }
  if (tensor.shape[2] > kMost || tensor.shape[3] > kMost) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have at most %lld heads of at most as many values, got shape %s", kOp,
                name, wide(kMost), shape_text(tensor));
  }
  if (tensor.shape[3] == 1 || tensor.strides[3] == 1) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: the last axis of %s should be contiguous", kOp, name);
}

// `tensor` has the axes of `like` from `first` up to `last`.
int32_t check_same(const char* name, const anynpu_tensor& tensor, const char* like_name, const anynpu_tensor& like,
                   int first, int last) {
  if (std::equal(tensor.shape + first, tensor.shape + last, like.shape + first)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have axes %d to %d of %s, %s, got shape %s", kOp, name, first, last - 1,
              like_name, shape_text(like), shape_text(tensor));
}

int32_t check_q_k_v(const Args& args) {
  const anynpu_tensor &q = args.q, &k = args.k, &v = args.v;
  ANYNPU_TRY(check_heads("q", q, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_heads("k", k, {q.dtype, ANYNPU_INT8}));
  ANYNPU_TRY(check_heads("v", v, {k.dtype}));
  ANYNPU_TRY(check_same("v", v, "k", k, 0, 3));
  if (k.shape[3] != q.shape[3]) {
    return fail(ANYNPU_BAD_SHAPE, "%s: the heads of k must be as long as those of q, %lld, got %lld", kOp,
                wide(q.shape[3]), wide(k.shape[3]));
  }
  if (q.shape[2] % k.shape[2] == 0) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: the heads of q must be a multiple of those of k, got %lld and %lld", kOp,
              wide(q.shape[2]), wide(k.shape[2]));
}

int32_t check_rope(const Args& args) {
  if (present(args.q_rope) != present(args.k_rope)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: q_rope and k_rope must be given together", kOp);
  }
  if (!present(args.q_rope)) return ANYNPU_OK;
  if (has_codes(args)) return fail(ANYNPU_UNSUPPORTED, "%s: q_rope is not implemented with int8 k and v", kOp);
  ANYNPU_TRY(check_heads("q_rope", args.q_rope, {args.q.dtype}));
  ANYNPU_TRY(check_heads("k_rope", args.k_rope, {args.q.dtype}));
  ANYNPU_TRY(check_same("q_rope", args.q_rope, "q", args.q, 0, 3));
  ANYNPU_TRY(check_same("k_rope", args.k_rope, "k", args.k, 0, 3));
  return check_same("k_rope", args.k_rope, "q_rope", args.q_rope, 3, 4);
}

bool of_tokens(const anynpu_tensor& factors) {
  return present(factors) && (factors.shape[0] != 1 || factors.shape[1] != 1);
}

int32_t check_factors(const char* name, const anynpu_tensor& factors, const anynpu_tensor& codes) {
  ANYNPU_TRY(check_view(name, factors, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}, 4));
  bool fits = true;
  for (int axis = 0; axis < 4; ++axis) {
    const int64_t size = factors.shape[axis], whole = codes.shape[axis];
    fits = fits && (size == 1 || (axis < 2 ? size >= whole : size == whole));
  }
  if (fits && (!of_tokens(factors) || factors.shape[3] == 1)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have a value for each head and channel, or for each token, of %s, got %s",
              kOp, name, shape_text(codes), shape_text(factors));
}

int32_t check_antiquant(const Args& args) {
  const struct {
    const char* name;
    const anynpu_tensor *factors, *codes;
    bool required;
  } entries[] = {{"k_scale", &args.k_scale, &args.k, true},
                 {"v_scale", &args.v_scale, &args.v, true},
                 {"k_offset", &args.k_offset, &args.k, false},
                 {"v_offset", &args.v_offset, &args.v, false}};
  for (const auto& entry : entries) {
    if (!has_codes(args)) {
      if (!present(*entry.factors)) continue;
      return fail(ANYNPU_BAD_DTYPE, "%s: %s is for int8 k and v, got %s", kOp, entry.name, dtype_name(args.k.dtype));
    }
    if (!entry.required && !present(*entry.factors)) continue;
    ANYNPU_TRY(check_factors(entry.name, *entry.factors, *entry.codes));
  }
  return ANYNPU_OK;
}

int32_t check_lengths(const Args& args) {
  const bool packed = is_packed(args);
  for (const auto* lengths : {&args.q_lengths, &args.kv_lengths}) {
    const char* name = lengths == &args.q_lengths ? "q_lengths" : "kv_lengths";
    if (!packed && !present(*lengths)) continue;
    ANYNPU_TRY(check_view(name, *lengths, {ANYNPU_INT64}, 1));
    const int64_t batch = packed ? batch_size(args) : args.q.shape[0];
    if (lengths->shape[0] == batch && is_contiguous(*lengths)) continue;
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have one value for each of %lld sequences, got shape %s", kOp, name,
                wide(batch), shape_text(*lengths));
  }
  if (!packed) return ANYNPU_OK;
  if (args.q.shape[0] == 1 && (is_paged(args) || args.k.shape[0] == 1)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: packed q and k must have one plane, got shapes %s and %s", kOp, shape_text(args.q),
              shape_text(args.k));
}

int32_t check_places(const Args& args) {
  ANYNPU_TRY(check_lengths(args));
  if (batch_size(args) > INT32_MAX) {
    return fail(ANYNPU_BAD_SHAPE, "%s: B must be at most %d, got %lld", kOp, INT32_MAX, wide(batch_size(args)));
  }
  if (!is_paged(args)) {
    if (is_packed(args) || args.k.shape[0] == args.q.shape[0]) return ANYNPU_OK;
    return fail(ANYNPU_BAD_SHAPE, "%s: k must have %lld sequences as q has, got %lld", kOp, wide(args.q.shape[0]),
                wide(args.k.shape[0]));
  }
  ANYNPU_TRY(check_view("block_table", args.block_table, {ANYNPU_INT32}, 2));
  int64_t rows = 0;
  const bool fits = !__builtin_mul_overflow(args.block_table.shape[1], args.k.shape[1], &rows) && rows < kEverywhere;
  if (!fits || args.block_table.shape[0] != batch_size(args)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: block_table must be [B, blocks] with B = %lld, got shape %s", kOp,
                wide(batch_size(args)), shape_text(args.block_table));
  }
  if (present(args.kv_lengths)) return ANYNPU_OK;
  return fail(ANYNPU_NULL_ARG, "%s: kv_lengths must be given for a block_table", kOp);
}

int32_t check_mask(const Args& args) {
  if (!present(args.mask)) return ANYNPU_OK;
  ANYNPU_TRY(check_view("mask", args.mask, {ANYNPU_BOOL, ANYNPU_INT8, ANYNPU_UINT8}, 4));
  const int64_t planes = args.mask.shape[0], heads = args.mask.shape[1];
  if (is_packed(args)) return fail(ANYNPU_UNSUPPORTED, "%s: mask is not implemented for packed sequences", kOp);
  if ((planes == 1 || planes == batch_size(args)) && (heads == 1 || heads == q_heads(args))) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: mask must have 1 or %lld sequences and 1 or %lld heads, got shape %s", kOp,
              wide(batch_size(args)), wide(q_heads(args)), shape_text(args.mask));
}

int32_t check_sink(const Args& args) {
  if (!present(args.sink)) return ANYNPU_OK;
  ANYNPU_TRY(check_view("sink", args.sink, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}, 1));
  if (args.sink.shape[0] == q_heads(args)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: sink must have shape (%lld,), one score a head, got %s", kOp, wide(q_heads(args)),
              shape_text(args.sink));
}

int32_t check_results(const Args& args) {
  ANYNPU_TRY(check_heads("out", args.out, {args.q.dtype}, Access::write));
  ANYNPU_TRY(check_same("out", args.out, "q", args.q, 0, 3));
  ANYNPU_TRY(check_same("out", args.out, "v", args.v, 3, 4));
  if (!present(args.lse)) return ANYNPU_OK;
  ANYNPU_TRY(check_view("lse", args.lse, {ANYNPU_FLOAT32}, 3, Access::write));
  return check_same("lse", args.lse, "q", args.q, 0, 3);
}

int32_t check(const Args& args) {
  ANYNPU_TRY(check_q_k_v(args));
  ANYNPU_TRY(check_rope(args));
  ANYNPU_TRY(check_antiquant(args));
  ANYNPU_TRY(check_places(args));
  ANYNPU_TRY(check_mask(args));
  ANYNPU_TRY(check_sink(args));
  return check_results(args);
}

int32_t check_all_data(const Args& args) {
  const struct {
    const char* name;
    const anynpu_tensor* tensor;
  } tensors[] = {{"q", &args.q},
                 {"k", &args.k},
                 {"v", &args.v},
                 {"q_rope", &args.q_rope},
                 {"k_rope", &args.k_rope},
                 {"k_scale", &args.k_scale},
                 {"k_offset", &args.k_offset},
                 {"v_scale", &args.v_scale},
                 {"v_offset", &args.v_offset},
                 {"block_table", &args.block_table},
                 {"mask", &args.mask},
                 {"sink", &args.sink},
                 {"q_lengths", &args.q_lengths},
                 {"kv_lengths", &args.kv_lengths},
                 {"out", &args.out},
                 {"lse", &args.lse}};
  for (const auto& entry : tensors) ANYNPU_TRY(check_data(kOp, entry.name, *entry.tensor));
  return ANYNPU_OK;
}

int64_t length_at(const anynpu_tensor& lengths, int64_t index) {
  return static_cast<const int64_t*>(lengths.data)[index];
}

int32_t block_at(const Args& args, int64_t batch, int64_t block) {
  const int64_t* strides = args.block_table.strides;
  return static_cast<const int32_t*>(args.block_table.data)[batch * strides[0] + block * strides[1]];
}

// Where a sequence lies in q and out and, without a block table, in k and v.
struct Sequence {
  int64_t batch, q_plane, first_row, rows, kv_plane, first_column, columns;
  int64_t slots;       // rows of out that are its own: those from `rows` on become 0
  int64_t first_item;  // of work
};

// Cuts the rows [0, total) that sequences share, or plane `batch`, by a list of ends or lengths.
int32_t cut(const char* name, const anynpu_tensor& lengths, bool packed, int64_t batch, int64_t total, int64_t* first,
            int64_t* count) {
  *first = packed && batch > 0 ? length_at(lengths, batch - 1) : 0;
  const int64_t end = present(lengths) ? length_at(lengths, batch) : total;
  if (end < *first || end > total || (packed && batch == lengths.shape[0] - 1 && end != total)) {
    return fail(ANYNPU_BAD_VALUE, "%s: %s must be in [%lld, %lld]%s, got %lld at [%lld]", kOp, name, wide(*first),
                wide(total), packed ? ", running sums that end with the last" : "", wide(end), wide(batch));
  }
  *count = end - *first;
  return ANYNPU_OK;
}

int32_t check_blocks(const Args& args, const Sequence& sequence) {
  for (int64_t block = 0; block * args.k.shape[1] < sequence.columns; ++block) {
    const int64_t index = block_at(args, sequence.batch, block);
    if (index >= 0 && index < args.k.shape[0]) continue;
    return fail(ANYNPU_BAD_VALUE, "%s: block_table must be in [0, %lld) where rows are used, got %lld at [%lld, %lld]",
                kOp, wide(args.k.shape[0]), wide(index), wide(sequence.batch), wide(block));
  }
  return ANYNPU_OK;
}

int32_t place(const Args& args, int64_t batch, Sequence* sequence) {
  const bool packed = is_packed(args);
  sequence->batch = batch;
  sequence->q_plane = packed ? 0 : batch;
  ANYNPU_TRY(cut("q_lengths", args.q_lengths, packed, batch, args.q.shape[1], &sequence->first_row, &sequence->rows));
  sequence->slots = packed ? sequence->rows : args.q.shape[1];
  const bool packed_kv = packed && !is_paged(args);
  sequence->kv_plane = packed ? 0 : batch;
  ANYNPU_TRY(cut("kv_lengths", args.kv_lengths, packed_kv, batch, capacity(args), &sequence->first_column,
                 &sequence->columns));
  if (is_paged(args)) ANYNPU_TRY(check_blocks(args, *sequence));
  if (!present(args.mask) || (args.mask.shape[2] >= sequence->rows && args.mask.shape[3] >= sequence->columns)) {
    return ANYNPU_OK;
  }
  return fail(ANYNPU_BAD_VALUE, "%s: mask must have at least %lld rows and %lld columns, got shape %s", kOp,
              wide(sequence->rows), wide(sequence->columns), shape_text(args.mask));
}

// How the work is cut; by the shapes alone, so that results do not depend on the threads.
struct Plan {
  int64_t group, positions, key_size, value_size, queries;

  explicit Plan(const Args& args) {
    group = q_heads(args) / kv_heads(args);
    positions = std::clamp<int64_t>(kBlockQueries / group, 1, std::max<int64_t>(1, args.q.shape[1]));
    queries = positions * group;
    key_size = round_up(args.q.shape[3] + rope_size(args), kFusedPadding);
    value_size = round_up(args.v.shape[3], kFusedPadding);
  }
  int64_t items(const Args& args, const Sequence& sequence) const {
    return kv_heads(args) * ceil_divide(sequence.slots, positions);
  }
};

// The memory of one thread.
struct Scratch {
  float *q, *k, *v, *scores, *accumulator, *maximum, *weight_sum, *k_scale, *k_offset, *v_scale, *v_offset;
  uintptr_t end;

  Scratch(const Plan& plan, uintptr_t memory) : end(memory) {
    q = take(plan.queries * plan.key_size);
    k = take(kFusedRows * plan.key_size);
    v = take(kFusedRows * plan.value_size);
    scores = take(plan.queries * kFusedRows);
    accumulator = take(plan.queries * plan.value_size);
    maximum = take(plan.queries);
    weight_sum = take(plan.queries);
    k_scale = take(plan.key_size);
    k_offset = take(plan.key_size);
    v_scale = take(plan.value_size);
    v_offset = take(plan.value_size);
  }
  static int64_t bytes(const Plan& plan) { return static_cast<int64_t>(Scratch(plan, 0).end); }

 private:
  float* take(int64_t count) {
    float* part = reinterpret_cast<float*>(end);
    end += round_up(count * sizeof(float), kScratchAlignment);
    return part;
  }
};

int64_t sequence_bytes(const Args& args) { return round_up(batch_size(args) * sizeof(Sequence), kScratchAlignment); }

const void* element(const anynpu_tensor& tensor, int64_t offset) {
  return static_cast<const char*>(tensor.data) + offset * (dtype_bits(tensor.dtype) / 8);
}
void* element(anynpu_tensor& tensor, int64_t offset) {
  return static_cast<char*>(tensor.data) + offset * (dtype_bits(tensor.dtype) / 8);
}
int64_t offset_of(const anynpu_tensor& tensor, int64_t plane, int64_t row, int64_t head) {
  return plane * tensor.strides[0] + row * tensor.strides[1] + head * tensor.strides[2];
}

// Of a tensor that an axis of size 1 repeats.
int64_t step(const anynpu_tensor& tensor, int axis) { return tensor.shape[axis] == 1 ? 0 : tensor.strides[axis]; }

float factor_at(const anynpu_tensor& factors, int64_t offset) {
  float value;
  pick(kKernels).widen(factors.dtype, element(factors, offset), 1, &value);
  return value;
}

// Limits of what a row sees.
int64_t limit(int64_t tokens) { return tokens >= INT32_MAX ? kEverywhere : std::max(tokens, -kEverywhere); }

// Attention of any kind, in float32.
class FloatRun {
 public:
  FloatRun(const Args& args, const Sequence* sequences, uintptr_t memory)
      : args_(args), plan_(args), kernel_(pick(kKernels)), sequences_(sequences), memory_(memory) {}

  int64_t items() const {
    const int64_t batch = batch_size(args_);
    return batch == 0 ? 0 : sequences_[batch - 1].first_item + plan_.items(args_, sequences_[batch - 1]);
  }

  void item(int64_t index, int64_t thread) const {
    const Sequence* after =
        std::upper_bound(sequences_, sequences_ + batch_size(args_), index,
                         [](int64_t item, const Sequence& sequence) { return item < sequence.first_item; });
    const Sequence& sequence = *(after - 1);
    const int64_t blocks = ceil_divide(sequence.slots, plan_.positions), at = index - sequence.first_item;
    const int64_t first = at % blocks * plan_.positions;
    const Block block{sequence, at / blocks, first, std::min(first + plan_.positions, sequence.slots)};
    attend(block, Scratch(plan_, memory_ + thread * Scratch::bytes(plan_)));
  }

 private:
  // Some positions of the query heads of one kv head.
  struct Block {
    const Sequence& sequence;
    int64_t kv_head, first, last;
    int64_t rows() const { return std::min(last, sequence.rows) - first; }
  };
  struct Columns {
    int64_t first, last;
  };

  // What position `row` sees before the mask.
  Columns seen(const Sequence& sequence, int64_t row) const {
    const int64_t at = row + (args_.from_end ? sequence.columns - sequence.rows : 0);
    return {std::max<int64_t>(0, at - limit(args_.before)), std::min(sequence.columns, at + limit(args_.after) + 1)};
  }

  void attend(const Block& block, const Scratch& scratch) const {
    FusedTile tile{
        plan_.key_size,  plan_.value_size,  0, 0, scratch.q, scratch.k, scratch.v, scratch.scores, scratch.accumulator,
        scratch.maximum, scratch.weight_sum};
    tile.queries = static_cast<int32_t>(std::max<int64_t>(0, block.rows()) * plan_.group);
    std::fill_n(scratch.accumulator, plan_.queries * plan_.value_size, 0.0f);
    std::fill_n(scratch.maximum, plan_.queries, kHidden);
    std::fill_n(scratch.weight_sum, plan_.queries, 0.0f);
    if (tile.queries > 0) {
      load_q(block, scratch);
      if (has_codes(args_)) load_channels(block.kv_head, scratch);
      Columns range = seen(block.sequence, block.first);
      range.last = std::max(range.last, seen(block.sequence, block.first + block.rows() - 1).last);
      for (int64_t column = range.first; column < range.last; column += kFusedRows) {
        tile.rows = static_cast<int32_t>(std::min<int64_t>(kFusedRows, range.last - column));
        load_rows(block, column, tile.rows, scratch);
        kernel_.score(tile, args_.softmax_scale);
        hide(block, column, tile);
        kernel_.add(tile);
      }
    }
    store(block, scratch);
  }

  void load_q(const Block& block, const Scratch& scratch) const {
    float* to = scratch.q;
    for (int64_t row = block.first; row < block.first + block.rows(); ++row) {
      for (int64_t g = 0; g < plan_.group; ++g, to += plan_.key_size) {
        const int64_t head = block.kv_head * plan_.group + g, at = block.sequence.first_row + row;
        widen(args_.q, block.sequence.q_plane, at, head, to);
        if (present(args_.q_rope)) widen(args_.q_rope, block.sequence.q_plane, at, head, to + args_.q.shape[3]);
        pad(to, args_.q.shape[3] + rope_size(args_), plan_.key_size);
      }
    }
  }

  void widen(const anynpu_tensor& tensor, int64_t plane, int64_t row, int64_t head, float* to) const {
    kernel_.widen(tensor.dtype, element(tensor, offset_of(tensor, plane, row, head)), tensor.shape[3], to);
  }
  static void pad(float* row, int64_t count, int64_t padded) { std::fill(row + count, row + padded, 0.0f); }

  // The factors that do not depend on the token.
  void load_channels(int64_t head, const Scratch& scratch) const {
    load_channels(args_.k_scale, head, 1, args_.k.shape[3], scratch.k_scale);
    load_channels(args_.k_offset, head, 0, args_.k.shape[3], scratch.k_offset);
    load_channels(args_.v_scale, head, 1, args_.v.shape[3], scratch.v_scale);
    load_channels(args_.v_offset, head, 0, args_.v.shape[3], scratch.v_offset);
  }
  void load_channels(const anynpu_tensor& factors, int64_t head, float otherwise, int64_t count, float* to) const {
    if (!present(factors) || of_tokens(factors)) {
      std::fill_n(to, count, otherwise);
      return;
    }
    for (int64_t i = 0; i < count; ++i) to[i] = factor_at(factors, head * step(factors, 2) + i * step(factors, 3));
  }
  float row_factor(const anynpu_tensor& factors, int64_t plane, int64_t row, int64_t head, float otherwise) const {
    if (!of_tokens(factors)) return otherwise;
    return factor_at(factors, plane * step(factors, 0) + row * step(factors, 1) + head * step(factors, 2));
  }

  void load_rows(const Block& block, int64_t column, int32_t rows, const Scratch& scratch) const {
    const Sequence& sequence = block.sequence;
    const int64_t block_size = args_.k.shape[1], rope_at = args_.k.shape[3];
    float *k = scratch.k, *v = scratch.v;
    for (int32_t i = 0; i < rows; ++i, k += plan_.key_size, v += plan_.value_size) {
      const int64_t at = column + i,
                    plane = is_paged(args_) ? block_at(args_, sequence.batch, at / block_size) : sequence.kv_plane;
      const int64_t row = is_paged(args_) ? at % block_size : sequence.first_column + at;
      if (has_codes(args_)) {
        dequantise(args_.k, args_.k_scale, args_.k_offset, {scratch.k_scale, scratch.k_offset, 1, 0}, plane, row,
                   block.kv_head, k);
        dequantise(args_.v, args_.v_scale, args_.v_offset, {scratch.v_scale, scratch.v_offset, 1, 0}, plane, row,
                   block.kv_head, v);
      } else {
        widen(args_.k, plane, row, block.kv_head, k);
        widen(args_.v, plane, row, block.kv_head, v);
        if (present(args_.k_rope)) widen(args_.k_rope, plane, row, block.kv_head, k + rope_at);
      }
      pad(k, rope_at + rope_size(args_), plan_.key_size);
      pad(v, args_.v.shape[3], plan_.value_size);
    }
  }

  void dequantise(const anynpu_tensor& tensor, const anynpu_tensor& scale, const anynpu_tensor& offset,
                  FusedCodes codes, int64_t plane, int64_t row, int64_t head, float* to) const {
    codes.row_scale = row_factor(scale, plane, row, head, 1);
    codes.row_offset = row_factor(offset, plane, row, head, 0);
    const auto* from = static_cast<const int8_t*>(element(tensor, offset_of(tensor, plane, row, head)));
    kernel_.dequantise(from, codes, tensor.shape[3], to);
  }

  void hide(const Block& block, int64_t column, const FusedTile& tile) const {
    float* scores = tile.scores;
    for (int64_t row = block.first; row < block.first + block.rows(); ++row) {
      const Columns range = seen(block.sequence, row);
      const int64_t first = std::clamp<int64_t>(range.first - column, 0, tile.rows);
      const int64_t last = std::clamp<int64_t>(range.last - column, first, tile.rows);
      for (int64_t g = 0; g < plan_.group; ++g, scores += kFusedRows) {
        std::fill(scores, scores + first, kHidden);
        std::fill(scores + last, scores + kFusedRows, kHidden);
        if (!present(args_.mask)) continue;
        const int64_t head = block.kv_head * plan_.group + g;
        const int64_t from = block.sequence.batch * step(args_.mask, 0) + head * step(args_.mask, 1) +
                             row * args_.mask.strides[2] + column * args_.mask.strides[3];
        const auto* hidden = static_cast<const uint8_t*>(args_.mask.data) + from;
        for (int64_t i = first; i < last; ++i) {
          if (hidden[i * args_.mask.strides[3]] != 0) scores[i] = kHidden;
        }
      }
    }
  }

  // The weight of the sink beside those of scores up to `maximum`.
  float sunk(int64_t head, float maximum) const {
    return present(args_.sink) ? std::exp(factor_at(args_.sink, head * args_.sink.strides[0]) - maximum) : 0.0f;
  }

  // Positions behind the sequence and those that see nothing become 0; their sums of exponentials are 1 and 0.
  void store(const Block& block, const Scratch& scratch) const {
    anynpu_tensor out = args_.out, lse = args_.lse;
    int64_t query = 0;
    for (int64_t row = block.first; row < block.last; ++row) {
      for (int64_t g = 0; g < plan_.group; ++g, ++query) {
        const int64_t head = block.kv_head * plan_.group + g, plane = block.sequence.q_plane,
                      at = block.sequence.first_row + row;
        const bool own = row < block.sequence.rows;
        const float sum = scratch.weight_sum[query];
        const float divisor = sum == 0 ? 1 : sum + sunk(head, scratch.maximum[query]);
        kernel_.narrow(out.dtype, scratch.accumulator + query * plan_.value_size, divisor, out.shape[3],
                       element(out, offset_of(out, plane, at, head)));
        if (!present(lse)) continue;
        *static_cast<float*>(element(lse, offset_of(lse, plane, at, head))) =
            own ? scratch.maximum[query] + std::log(sum) : 0.0f;
      }
    }
  }

  const Args& args_;
  Plan plan_;
  const FusedKernel& kernel_;
  const Sequence* sequences_;
  uintptr_t memory_;
};

// Attention to int8 rows with factors of heads and channels, which another operator knows: one call for all sequences where
// they have as many queries, otherwise a call for each.
class CodesRun {
 public:
  CodesRun(const Args& args, const Sequence* sequences, uintptr_t memory)
      : args_(args),
        sequences_(sequences),
        lengths_(reinterpret_cast<int32_t*>(memory)),
        factors_(reinterpret_cast<float*>(memory + round_up(batch_size(args) * sizeof(int32_t), kScratchAlignment))) {}
  static int64_t bytes(const Args& args) {
    return round_up(batch_size(args) * sizeof(int32_t), kScratchAlignment) + 4 * count(args) * sizeof(float);
  }

  // By all but the lengths.
  static bool takes(const Args& args) {
    if (!has_codes(args) || args.q.shape[3] != args.v.shape[3] || present(args.mask) || present(args.lse)) return false;
    if (present(args.sink)) return false;
    if (of_tokens(args.k_scale) || of_tokens(args.k_offset) || of_tokens(args.v_scale) || of_tokens(args.v_offset)) {
      return false;
    }
    for (int axis = 0; axis < 4; ++axis) {
      if (args.k.shape[axis] > 1 && args.k.strides[axis] != args.v.strides[axis]) return false;
    }
    return limit(args.before) == kEverywhere && (limit(args.after) == kEverywhere || is_causal(args));
  }
  bool takes_lengths() const {
    return std::all_of(sequences_, sequences_ + batch_size(args_), [&](const Sequence& sequence) {
      const int64_t least = is_causal(args_) ? sequence.rows : 1;
      return sequence.rows == 0 || (sequence.columns >= least && sequence.columns <= INT32_MAX);
    });
  }

  int32_t run() const {
    const int64_t batch = batch_size(args_);
    Call call{};
    call.q = args_.q;
    call.k_cache = args_.k;
    call.v_cache = args_.v;
    call.out = args_.out;
    call.block_table = args_.block_table;
    call.softmax_scale = args_.softmax_scale;
    call.causal = is_causal(args_);
    call.scale_k = load(args_.k_scale, 1, 0);
    call.scale_v = load(args_.v_scale, 1, 1);
    call.offset_k = load(args_.k_offset, -1, 2);
    call.offset_v = load(args_.v_offset, -1, 3);
    const bool together = !is_packed(args_) && std::all_of(sequences_, sequences_ + batch, [&](const Sequence& each) {
      return each.rows == args_.q.shape[1];
    });
    if (together) return attend(call, 0, batch);
    for (int64_t index = 0; index < batch; ++index) {
      const Sequence& sequence = sequences_[index];
      clear_behind(sequence);
      if (sequence.rows > 0) ANYNPU_TRY(attend(of_sequence(call, sequence), index, 1));
    }
    return ANYNPU_OK;
  }

 private:
  using Call = anynpu_kv_cache_attention_args;

  static int64_t count(const Args& args) { return kv_heads(args) * args.k.shape[3]; }
  static bool is_causal(const Args& args) { return args.from_end != 0 && args.after == 0; }

  // sign * factors as floats of heads and channels.
  anynpu_tensor load(const anynpu_tensor& factors, float sign, int64_t place) const {
    if (!present(factors)) return {};
    anynpu_tensor made{factors_ + place * count(args_),     ANYNPU_FLOAT32,       ANYNPU_ND, 2, 0,
                       {kv_heads(args_), args_.k.shape[3]}, {args_.k.shape[3], 1}};
    auto* to = static_cast<float*>(made.data);
    for (int64_t head = 0; head < kv_heads(args_); ++head) {
      for (int64_t i = 0; i < args_.k.shape[3]; ++i) {
        *to++ = sign * factor_at(factors, head * step(factors, 2) + i * step(factors, 3));
      }
    }
    return made;
  }

  int32_t attend(Call call, int64_t first, int64_t batch) const {
    for (int64_t index = 0; index < batch; ++index) {
      lengths_[index] = static_cast<int32_t>(sequences_[first + index].columns);
    }
    call.lengths = {lengths_, ANYNPU_INT32, ANYNPU_ND, 1, 0, {batch}, {1}};
    return anynpu_kv_cache_attention(&call, nullptr, 0);
  }

  static void narrow_to(anynpu_tensor& tensor, int axis, int64_t first, int64_t size) {
    tensor.data = element(tensor, first * tensor.strides[axis]);
    tensor.shape[axis] = size;
  }

  Call of_sequence(Call call, const Sequence& sequence) const {
    for (auto* tensor : {&call.q, &call.out}) {
      narrow_to(*tensor, 0, sequence.q_plane, 1);
      narrow_to(*tensor, 1, sequence.first_row, sequence.rows);
    }
    if (is_paged(args_)) {
      narrow_to(call.block_table, 0, sequence.batch, 1);
      return call;
    }
    for (auto* tensor : {&call.k_cache, &call.v_cache}) {
      narrow_to(*tensor, 0, sequence.kv_plane, 1);
      narrow_to(*tensor, 1, sequence.first_column, sequence.columns);
    }
    return call;
  }

  void clear_behind(const Sequence& sequence) const {
    anynpu_tensor out = args_.out;
    const int64_t bytes = out.shape[3] * dtype_bits(out.dtype) / 8;
    for (int64_t row = sequence.rows; row < sequence.slots; ++row) {
      for (int64_t head = 0; head < out.shape[2]; ++head) {
        std::memset(element(out, offset_of(out, sequence.q_plane, sequence.first_row + row, head)), 0, bytes);
      }
    }
  }

  const Args& args_;
  const Sequence* sequences_;
  int32_t* lengths_;
  float* factors_;
};

int threads_for(const Args& args) {
  const int64_t work = element_count(args.out) * std::min<int64_t>(capacity(args), kGrain);
  return work <= kGrain ? 1 : thread_count(std::numeric_limits<int32_t>::max(), 1);
}

size_t workspace_size(const Args& args) {
  if (element_count(args.out) == 0) return 0;
  const int64_t floats = threads_for(args) * Scratch::bytes(Plan(args));
  return sequence_bytes(args) + (CodesRun::takes(args) ? std::max(floats, CodesRun::bytes(args)) : floats);
}

int32_t run(const Args& args, void* workspace, size_t workspace_bytes) {
  const size_t bytes = workspace_size(args);
  if (bytes == 0) return ANYNPU_OK;
  void* memory = workspace != nullptr && workspace_bytes >= bytes ? workspace : scratch(ScratchSlot::fallback, bytes);
  if (memory == nullptr) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %zu bytes of workspace", kOp, bytes);
  auto* sequences = static_cast<Sequence*>(memory);
  const uintptr_t rest = reinterpret_cast<uintptr_t>(memory) + sequence_bytes(args);
  const Plan plan(args);
  int64_t items = 0;
  for (int64_t batch = 0; batch < batch_size(args); ++batch) {
    ANYNPU_TRY(place(args, batch, &sequences[batch]));
    sequences[batch].first_item = items;
    items += plan.items(args, sequences[batch]);
  }
  const CodesRun codes(args, sequences, rest);
  if (CodesRun::takes(args) && codes.takes_lengths()) return codes.run();
  const FloatRun floats(args, sequences, rest);
  parallel_tasks(std::min<int64_t>(threads_for(args), items), items,
                 [&](int64_t item, int64_t thread) { floats.item(item, thread); });
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

extern "C" int32_t anynpu_fused_attention_check(const anynpu_fused_attention_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) {
    return anynpu::fail(ANYNPU_NULL_ARG, "fused_attention: null argument");
  }
  *workspace_bytes = 0;
  ANYNPU_TRY(anynpu::check(*args));
  *workspace_bytes = anynpu::workspace_size(*args);
  return ANYNPU_OK;
}

extern "C" int32_t anynpu_fused_attention(const anynpu_fused_attention_args* args, void* workspace,
                                          size_t workspace_bytes) {
  size_t wanted = 0;
  ANYNPU_TRY(anynpu_fused_attention_check(args, &wanted));
  ANYNPU_TRY(anynpu::check_all_data(*args));
  return anynpu::run(*args, workspace, workspace_bytes);
}
