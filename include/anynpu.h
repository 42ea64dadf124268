/* SPDX-License-Identifier: Apache-2.0
 *
 * Flat C ABI of the native library: one argument struct and two functions per operator.
 * Every function is thread-safe and never throws, aborts or writes an output when it returns an error.
 */
#ifndef ANYNPU_H_
#define ANYNPU_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ANYNPU_API
#else
#define ANYNPU_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct or a function below changes; the Python binding refuses any other number. */
#define ANYNPU_ABI_VERSION 6
#define ANYNPU_MAX_DIMS 8

typedef enum {
  ANYNPU_OK = 0,
  ANYNPU_NULL_ARG = 1, /* a required tensor or pointer is missing */
  ANYNPU_BAD_DTYPE = 2,
  ANYNPU_BAD_SHAPE = 3,   /* shape, stride, format or attribute */
  ANYNPU_BAD_VALUE = 4,   /* found in the data while running, e.g. a value outside int4 */
  ANYNPU_UNSUPPORTED = 5, /* documented, but not implemented here */
  ANYNPU_NO_MEMORY = 6,
  ANYNPU_INTERNAL = 7
} anynpu_status;

/* The published numbers of aclDataType. */
typedef enum {
  ANYNPU_FLOAT32 = 0,
  ANYNPU_FLOAT16 = 1,
  ANYNPU_INT8 = 2,
  ANYNPU_INT32 = 3,
  ANYNPU_UINT8 = 4,
  ANYNPU_INT16 = 6,
  ANYNPU_UINT16 = 7,
  ANYNPU_UINT32 = 8,
  ANYNPU_INT64 = 9,
  ANYNPU_UINT64 = 10,
  ANYNPU_FLOAT64 = 11,
  ANYNPU_BOOL = 12,
  ANYNPU_BFLOAT16 = 27,
  ANYNPU_INT4 = 29
} anynpu_dtype;

typedef enum { ANYNPU_ND = 2, ANYNPU_FRACTAL_NZ = 29 } anynpu_format;

/* A strided view. format == 0, as in a zeroed struct: an optional tensor that is absent.
 * The check functions do not look at data; running wants it for every present tensor that has elements.
 * INT4 keeps the unpacked shape and strides; two elements share a byte, the even one in the low nibble.
 * FRACTAL_NZ: shape and strides describe the logical view (contiguous, or its last two axes swapped);
 * data holds the NZ storage of the contiguous tensor with inner blocks of nz_c0 columns (0: 32 bytes, int4 64). */
typedef struct {
  void* data;
  int32_t dtype;
  int32_t format;
  int32_t ndim;
  int32_t nz_c0;
  int64_t shape[ANYNPU_MAX_DIMS];
  int64_t strides[ANYNPU_MAX_DIMS];
} anynpu_tensor;

ANYNPU_API int32_t anynpu_abi_version(void);
/* sizeof(anynpu_<name>), e.g. "int4_pack_args"; 0 for an unknown name. */
ANYNPU_API int64_t anynpu_sizeof(const char* name);
/* The sentence for the last error of this thread; valid until its next call. */
ANYNPU_API const char* anynpu_last_error(void);
/* Instruction set tiers, best first: "amx", "avx512bf16", "avx512vbmi", "avx512vnni", "avxvnni", "avx2", "neon", "portable". */
ANYNPU_API const char* anynpu_isa(void);
/* Why tier `isa` is not used, or NULL when this machine and build can use it. */
ANYNPU_API const char* anynpu_isa_refusal(const char* isa);
/* Caps the tier for the whole process (NULL: no cap), as the variable ANYNPU_MAX_ISA does. Not for use while operators run. */
ANYNPU_API int32_t anynpu_set_max_isa(const char* isa);

/* int4_pack: int32 values in [-8, 7] -> two's complement nibbles, eight in an int32, lowest first.
 * weight INT32 [..., N]; packed INT32 [..., N / 8], or INT4 [..., N], or UINT8 [..., N / 2]; ND or FRACTAL_NZ alike. */
typedef struct {
  anynpu_tensor weight;
  anynpu_tensor packed;
  int32_t packed_is_scratch; /* nonzero: on an error the caller drops `packed`, so it need not be restored */
  int32_t reserved;
} anynpu_int4_pack_args;
ANYNPU_API int32_t anynpu_int4_pack_check(const anynpu_int4_pack_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_int4_pack(const anynpu_int4_pack_args* args, void* workspace, size_t workspace_bytes);

/* int4_unpack: the inverse. packed as above, ND; weight INT32 or INT8 [..., N]. */
typedef struct {
  anynpu_tensor packed;
  anynpu_tensor weight;
} anynpu_int4_unpack_args;
ANYNPU_API int32_t anynpu_int4_unpack_check(const anynpu_int4_unpack_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_int4_unpack(const anynpu_int4_unpack_args* args, void* workspace, size_t workspace_bytes);

/* weight_quant_matmul: y = x @ ((weight + offset) * scale) + bias, optionally quantised to int8.
 * x [..., M, K]; weight INT8, INT4 or INT32 (eight int4) [..., K, N], or a prepacked UINT8 blob [bytes];
 * scale, offset (1), (N), (1, N) or (ceil(K / group_size), N); bias (N) or (1, N); quant_scale, quant_offset (1), (N) or (1, N). */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor weight;
  anynpu_tensor scale;
  anynpu_tensor offset;
  anynpu_tensor bias;
  anynpu_tensor quant_scale;
  anynpu_tensor quant_offset;
  anynpu_tensor y;
  int64_t group_size;    /* 0: no groups */
  int32_t inner_precise; /* 0: fp32 accuracy; 1: 16-bit block fixed point for x where that is faster */
  int32_t reserved;
} anynpu_weight_quant_matmul_args;
ANYNPU_API int32_t anynpu_weight_quant_matmul_check(const anynpu_weight_quant_matmul_args* args,
                                                    size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_weight_quant_matmul(const anynpu_weight_quant_matmul_args* args, void* workspace,
                                              size_t workspace_bytes);

/* weight_quant_prepack: one 2-D weight as above -> the named, versioned format of docs/formats.md that the kernels read
 * fastest, for repeated use. The check function reports the blob's size; packed is UINT8 [packed_bytes]. */
typedef struct {
  anynpu_tensor weight;
  anynpu_tensor packed;
} anynpu_weight_quant_prepack_args;
ANYNPU_API int32_t anynpu_weight_quant_prepack_check(const anynpu_weight_quant_prepack_args* args,
                                                     size_t* packed_bytes);
ANYNPU_API int32_t anynpu_weight_quant_prepack(const anynpu_weight_quant_prepack_args* args, void* workspace,
                                               size_t workspace_bytes);

/* cast: y = x in the dtype of y. Every dtype but INT4; ND; x of any strides, y of any strides that do not overlap.
 * Float to integer truncates and saturates (NaN: 0), integer to integer wraps, to BOOL is x != 0, to float rounds once. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor y;
} anynpu_cast_args;
ANYNPU_API int32_t anynpu_cast_check(const anynpu_cast_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_cast(const anynpu_cast_args* args, void* workspace, size_t workspace_bytes);

/* trans_quant_param: 19 bits of each float32 scale and 9 bits of its offset in one 64-bit word for the quantised matmuls.
 * scale FLOAT32 (n) or (1, n); offset absent or FLOAT32 of scale's rank, an axis of 1 broadcasts either way;
 * param INT64 or UINT64 of the broadcast shape. round_mode 0 truncates the scale to 19 bits, 1 rounds half to even. */
typedef struct {
  anynpu_tensor scale;
  anynpu_tensor offset;
  anynpu_tensor param;
  int32_t round_mode;
  int32_t reserved;
} anynpu_trans_quant_param_args;
ANYNPU_API int32_t anynpu_trans_quant_param_check(const anynpu_trans_quant_param_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_trans_quant_param(const anynpu_trans_quant_param_args* args, void* workspace,
                                            size_t workspace_bytes);

/* quantize: y = rint(x / scales) + zero_points (div_mode nonzero), or rint(x * scales + zero_points), saturated.
 * x FLOAT32, FLOAT16 or BFLOAT16; scales (1) or (x.shape[axis]), or of x's rank with every other axis 1;
 * zero_points absent or shaped by the same rule. div_mode: y INT8, UINT8 or INT32; otherwise y INT8, INT4 [..., N] or
 * INT32 [..., N / 8] (eight int4), and every axis above -2 means the last. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor scales;
  anynpu_tensor zero_points;
  anynpu_tensor y;
  int64_t axis;
  int32_t div_mode;
  int32_t reserved;
} anynpu_quantize_args;
ANYNPU_API int32_t anynpu_quantize_check(const anynpu_quantize_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_quantize(const anynpu_quantize_args* args, void* workspace, size_t workspace_bytes);

/* format_cast: the same tensor in the other layout. One of x and y is ND, the other FRACTAL_NZ, same dtype and shape;
 * padding is written as zero bytes. INT32 may hold eight int4 each: its default nz_c0, 8 words, is INT4's 64 columns. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor y;
} anynpu_format_cast_args;
ANYNPU_API int32_t anynpu_format_cast_check(const anynpu_format_cast_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_format_cast(const anynpu_format_cast_args* args, void* workspace, size_t workspace_bytes);

typedef enum { ANYNPU_CACHE_CONTIGUOUS = 0, ANYNPU_CACHE_PAGE = 1 } anynpu_cache_mode;

/* rope_kv_cache: dequantises x (INT32 only), splits it into q, k, v, rotates q and k, and writes k and v as int8 codes,
 * saturate(rint(value / scale + offset)), into the caches.
 * x [B, S, H] or [B, H], INT32 or the dtype of cos; cos, sin [B, S, 1, D] or [B, D], FLOAT16, BFLOAT16 or FLOAT32;
 * k_cache, v_cache INT8 [C1, C2, Nkv, D], contiguous; indices INT32, one a batch, or one a token in page mode;
 * scale_k, scale_v, offset_k, offset_v FLOAT32 [Nkv, D]; for INT32 x: weight_scale FLOAT32 [H], activation_scale
 * FLOAT32 (at least B * S), bias INT32 or any float (at least H); q, k, v [B, S, N, D] or [B, N, D], contiguous.
 * Offsets, activation_scale and bias may be absent; k and v are absent when not wanted. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor cos;
  anynpu_tensor sin;
  anynpu_tensor k_cache;
  anynpu_tensor v_cache;
  anynpu_tensor indices;
  anynpu_tensor scale_k;
  anynpu_tensor scale_v;
  anynpu_tensor offset_k;
  anynpu_tensor offset_v;
  anynpu_tensor weight_scale;
  anynpu_tensor activation_scale;
  anynpu_tensor bias;
  anynpu_tensor q;
  anynpu_tensor k;
  anynpu_tensor v;
  int64_t size_splits[3]; /* [Nq * D, Nkv * D, Nkv * D] */
  int32_t cache_mode;     /* anynpu_cache_mode */
  int32_t reserved;
} anynpu_rope_kv_cache_args;
ANYNPU_API int32_t anynpu_rope_kv_cache_check(const anynpu_rope_kv_cache_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_rope_kv_cache(const anynpu_rope_kv_cache_args* args, void* workspace, size_t workspace_bytes);

/* kv_cache_attention: softmax(q @ k^T * softmax_scale) @ v with k = (k_code - offset_k) * scale_k, and v likewise.
 * q [B, S, Nq, D], FLOAT16, BFLOAT16 or FLOAT32; k_cache, v_cache INT8 [C1, C2, Nkv, D], of the same strides; lengths
 * INT32 [B], the rows of each sequence, those of q last; scale_k, scale_v, offset_k, offset_v FLOAT32 [Nkv, D]; out as q.
 * The last axes of caches and out are contiguous; decoding is fastest where the heads of the caches lie side by side.
 * Sequence b lies in plane b of the caches; with block_table, INT32 [B, blocks], row r in plane block_table[b, r / C2].
 * starts INT32 [B]: rows before it are not seen. Offsets, block_table and starts may be absent.
 * causal: query s sees rows before lengths[b] - S + s + 1. A query that sees no row gets zeros. */
typedef struct {
  anynpu_tensor q;
  anynpu_tensor k_cache;
  anynpu_tensor v_cache;
  anynpu_tensor lengths;
  anynpu_tensor scale_k;
  anynpu_tensor scale_v;
  anynpu_tensor offset_k;
  anynpu_tensor offset_v;
  anynpu_tensor block_table;
  anynpu_tensor starts;
  anynpu_tensor out;
  float softmax_scale;
  int32_t causal;
} anynpu_kv_cache_attention_args;
ANYNPU_API int32_t anynpu_kv_cache_attention_check(const anynpu_kv_cache_attention_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_kv_cache_attention(const anynpu_kv_cache_attention_args* args, void* workspace,
                                             size_t workspace_bytes);

/* fused_attention: softmax(q @ k^T * softmax_scale, hidden) @ v of sequences of their own lengths, in float32.
 * q [B, S, Nq, D] FLOAT32, FLOAT16 or BFLOAT16; k [B, T, Nkv, D] and v [B, T, Nkv, Dv] of q's dtype, or INT8, INT4 (heads
 * begin at whole bytes) or INT32 (eight int4, [.., D / 8]) with values
 * (code + offset) * scale; scales and offsets of any of the float dtypes, offsets may be absent, for each head and channel,
 * [1, 1, Nkv or 1, D or 1], or each token, [B, T, Nkv or 1, 1]; out [B, S, Nq, Dv], lse (the log-sum-exp, may be absent)
 * FLOAT32 [B, S, Nq]. q_rope, k_rope [.., Dr]: further values of the heads of q and float k, or absent. Any strides but
 * those of values of a head, which are contiguous.
 * block_table INT32 [B, blocks]: k and v (and their tokens' factors) are [P, T, ..], row r of sequence b in plane
 * block_table[b, r / T]. q_lengths, kv_lengths INT64 [B], contiguous: rows of each sequence; kv_lengths only with a block
 * table are required. packed: B is that of the lengths, which are running sums of sequences that lie one after the other in
 * q [1, S, ..] and, without a block table, k and v [1, T, ..].
 * Row i sees columns j with i - before <= j <= i + after (from 2^31 - 1 on: all), with from_end nonzero counted from
 * where the last row meets the last column; mask BOOL, INT8 or UINT8 [B or 1, Nq or 1, rows, columns] hides more where it is
 * not 0. sink, of any of the float dtypes, [Nq] or absent: of each head the score of one more column, which all rows see,
 * whose value is 0 and which lse leaves out. Rows behind their sequence give 0 (lse 0), and rows that see nothing 0 (lse
 * -infinity). out_scale, out_offset (may be absent), of any of the float dtypes, [Nq or 1, Dv or 1] with values of a head side
 * by side: out is INT8, the float32 result * out_scale + out_offset, rounded to even and saturated. bias, of any of the float
 * dtypes, [B or 1, Nq or 1, rows, columns] with columns side by side, is added to the scaled scores.
 * q INT8, with INT8 k and v whose scales are [1, 1, Nkv or 1, 1] and without offsets: its values are the codes, weights w become
 * the int8 saturate(rint(w * p_scale)), p_scale [1] of any of the float dtypes, before they meet the codes of v; out is FLOAT16 or
 * INT8. */
typedef struct {
  anynpu_tensor q;
  anynpu_tensor k;
  anynpu_tensor v;
  anynpu_tensor q_rope;
  anynpu_tensor k_rope;
  anynpu_tensor k_scale;
  anynpu_tensor k_offset;
  anynpu_tensor v_scale;
  anynpu_tensor v_offset;
  anynpu_tensor block_table;
  anynpu_tensor mask;
  anynpu_tensor sink;
  anynpu_tensor q_lengths;
  anynpu_tensor kv_lengths;
  anynpu_tensor out_scale;
  anynpu_tensor out_offset;
  anynpu_tensor bias;
  anynpu_tensor p_scale;
  anynpu_tensor out;
  anynpu_tensor lse;
  int64_t before;
  int64_t after;
  float softmax_scale;
  int32_t from_end;
  int32_t packed;
  int32_t reserved;
} anynpu_fused_attention_args;
ANYNPU_API int32_t anynpu_fused_attention_check(const anynpu_fused_attention_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_fused_attention(const anynpu_fused_attention_args* args, void* workspace,
                                          size_t workspace_bytes);

/* float_elementwise: y = x1 + alpha * x2, x1 * x2, x1 / x2, or x1 * sigmoid(x1), in float32 and rounded once. FLOAT32, FLOAT16 or
 * BFLOAT16 of any strides; x1 and x2 broadcast to the shape of y. x1 absent: y itself; x2 is absent for SILU. */
typedef enum {
  ANYNPU_FLOAT_ADD = 0,
  ANYNPU_FLOAT_MULTIPLY = 1,
  ANYNPU_FLOAT_SILU = 2,
  ANYNPU_FLOAT_DIVIDE = 3
} anynpu_float_operation;
typedef struct {
  anynpu_tensor x1;
  anynpu_tensor x2;
  anynpu_tensor y;
  int32_t operation;
  float alpha;
} anynpu_float_elementwise_args;
ANYNPU_API int32_t anynpu_float_elementwise_check(const anynpu_float_elementwise_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_float_elementwise(const anynpu_float_elementwise_args* args, void* workspace,
                                            size_t workspace_bytes);

/* rms_norm: y = x * rstd * gamma, rstd = 1 / sqrt(mean(x^2) + epsilon) over the last axes, those of gamma. x = x1, or where x2
 * is there x1 + x2 rounded to their dtype. x1 and x2 FLOAT32, FLOAT16 or BFLOAT16; gamma of x1's dtype or FLOAT32; y and x
 * (with x2 only) as x1; rstd FLOAT32, the axes of gamma 1. All contiguous. */
typedef struct {
  anynpu_tensor x1;
  anynpu_tensor x2;
  anynpu_tensor gamma;
  anynpu_tensor y;
  anynpu_tensor rstd;
  anynpu_tensor x;
  float epsilon;
  int32_t reserved;
} anynpu_rms_norm_args;
ANYNPU_API int32_t anynpu_rms_norm_check(const anynpu_rms_norm_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_rms_norm(const anynpu_rms_norm_args* args, void* workspace, size_t workspace_bytes);

/* float_matmul: y = x1 @ x2 with sums in float32. x1 [.., M, K] or [K], x2 [.., K, N] or [K], y [.., M, N] (without the axis
 * that a 1-D x lacks), of one dtype, FLOAT32, FLOAT16 or BFLOAT16 (y also FLOAT32), and any strides; the leading axes
 * broadcast. x2 also FRACTAL_NZ. */
typedef struct {
  anynpu_tensor x1;
  anynpu_tensor x2;
  anynpu_tensor y;
} anynpu_float_matmul_args;
ANYNPU_API int32_t anynpu_float_matmul_check(const anynpu_float_matmul_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_float_matmul(const anynpu_float_matmul_args* args, void* workspace, size_t workspace_bytes);

/* anti_quant: y = (x + offset) * scale in float32, rounded once. x INT8 [.., N], INT4 [.., N] or INT32 [.., N / 8] (eight
 * int4), not empty; scale, offset (may be absent) [1] or [N] of one float dtype; y FLOAT16 or BFLOAT16 [.., N]. Contiguous. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor scale;
  anynpu_tensor offset;
  anynpu_tensor y;
} anynpu_anti_quant_args;
ANYNPU_API int32_t anynpu_anti_quant_check(const anynpu_anti_quant_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_anti_quant(const anynpu_anti_quant_args* args, void* workspace, size_t workspace_bytes);

/* moe_gating_topk: the k = y.shape[1] experts of each row whose score + bias is largest, among those of the k_group best of
 * group_count groups, and their scores times routed_scaling_factor, with sigmoid scores divided by their sum + eps before.
 * x FLOAT32, FLOAT16 or BFLOAT16 [N, E]; bias of x's dtype [E], may be absent; y of x's dtype and expert_idx INT32 [N, k];
 * scores FLOAT32 [N, E], may be absent. norm_type 0: softmax, 1: sigmoid. A group is worth its largest score + bias
 * (group_select_mode 0), or the sum of the two largest (1). Contiguous. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor bias;
  anynpu_tensor y;
  anynpu_tensor expert_idx;
  anynpu_tensor scores;
  int64_t k_group;
  int64_t group_count;
  int32_t group_select_mode;
  int32_t norm_type;
  float routed_scaling_factor;
  float eps;
} anynpu_moe_gating_topk_args;
ANYNPU_API int32_t anynpu_moe_gating_topk_check(const anynpu_moe_gating_topk_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_moe_gating_topk(const anynpu_moe_gating_topk_args* args, void* workspace,
                                          size_t workspace_bytes);

/* weight_compress: an int8 weight in the lossless format c8 of docs/formats.md. weight INT8 (N, K), any strides;
 * stream INT8 [ceil(N / 64) * 64 * ceil(K / 4) * 4], of which the first *stream_bytes (INT64 [1]) are the result;
 * index INT8 [ceil(K / 256) * ceil(N / 128) * 8]. */
typedef struct {
  anynpu_tensor weight;
  anynpu_tensor stream;
  anynpu_tensor index;
  anynpu_tensor stream_bytes;
} anynpu_weight_compress_args;
ANYNPU_API int32_t anynpu_weight_compress_check(const anynpu_weight_compress_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_weight_compress(const anynpu_weight_compress_args* args, void* workspace,
                                          size_t workspace_bytes);

/* weight_decompress: the inverse. stream INT8 [stream_bytes], index as above; weight INT8 (N, K), contiguous. */
typedef struct {
  anynpu_tensor stream;
  anynpu_tensor index;
  anynpu_tensor weight;
  int32_t weight_is_scratch; /* nonzero: on an error the caller drops weight, so it need not be restored */
  int32_t reserved;
} anynpu_weight_decompress_args;
ANYNPU_API int32_t anynpu_weight_decompress_check(const anynpu_weight_decompress_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_weight_decompress(const anynpu_weight_decompress_args* args, void* workspace,
                                            size_t workspace_bytes);

/* quant_matmul: y = (x1 @ x2 + bias) * scale * pertoken_scale + offset with int32 sums; a float bias is added after scaling.
 * x1 INT8 [..., M, K]; x2 INT8 [..., K, N], ND or FRACTAL_NZ, or a transposed view; scale (1) or (N), INT64, UINT64 (the
 * low 32 bits are a float32), FLOAT32 or BFLOAT16; offset FLOAT32 (1) or (N); pertoken_scale FLOAT32 (M); bias INT32,
 * FLOAT32, FLOAT16 or BFLOAT16 (N) or [batch, 1, N]; y INT8 (rounded, saturated), FLOAT16, BFLOAT16, FLOAT32, or INT32,
 * which is x1 @ x2 + bias without the scale; contiguous.
 * x2 may be a prepacked UINT8 blob [bytes]: w8p32 of int8, w4p32 of int4. Int4 x2 is INT4 [K, N], INT32 (eight int4) or
 * prepacked, for float y. With group_size every so many k, a multiple of 32, have a row of scale (ceil(K / group_size), N):
 * y = (sum over the groups of (x1 @ x2) * scale + offset) * pertoken_scale + float bias, with pertoken_scale also (M, 1). */
typedef struct {
  anynpu_tensor x1;
  anynpu_tensor x2;
  anynpu_tensor scale;
  anynpu_tensor offset;
  anynpu_tensor pertoken_scale;
  anynpu_tensor bias;
  anynpu_tensor y;
  int64_t group_size; /* 0: no groups */
} anynpu_quant_matmul_args;
ANYNPU_API int32_t anynpu_quant_matmul_check(const anynpu_quant_matmul_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_quant_matmul(const anynpu_quant_matmul_args* args, void* workspace, size_t workspace_bytes);

/* compressed_matmul: y = (x @ W.T + bias) * scale * pertoken_scale with W (N, K) compressed by weight_compress; a float bias
 * is added after scaling. x INT8 (M, K); stream and index INT8; bias INT32 or FLOAT32, (N) or (1, N); scale INT64 or UINT64
 * (the low 32 bits are a float32) or FLOAT32, (1), (N), (1, 1) or (1, N); pertoken_scale absent or FLOAT32 (M);
 * y FLOAT16, BFLOAT16 or FLOAT32 (M, N), contiguous. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor stream;
  anynpu_tensor index;
  anynpu_tensor bias;
  anynpu_tensor scale;
  anynpu_tensor pertoken_scale;
  anynpu_tensor y;
  int32_t scale_19_bits; /* nonzero: use the top 19 bits of each float32, as the hardware does */
  int32_t y_is_scratch;  /* nonzero: on an error the caller drops y, so it need not be restored */
} anynpu_compressed_matmul_args;
ANYNPU_API int32_t anynpu_compressed_matmul_check(const anynpu_compressed_matmul_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_compressed_matmul(const anynpu_compressed_matmul_args* args, void* workspace,
                                            size_t workspace_bytes);

/* int8_linear: a linear layer of int8 activations in one call. x FLOAT16, BFLOAT16 or FLOAT32 [..., M, K]; y [..., M, N], a
 * float, contiguous. The rows of x become the codes and scales of dynamic_quant, or with input_scale, FLOAT32 (1), the codes
 * of quantize by it and input_offset, absent or FLOAT32 (1). Then weight, scale, bias and group_size are x2, scale, bias and
 * group_size of quant_matmul, a 2-D weight or a prepacked one; with index weight is the stream of compressed_matmul.
 * pertoken_scale is the scale of each row, or input_scale; none with an input_offset: then scale has the factor input_scale
 * already, as bias has what the offset adds to the sums. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor weight;
  anynpu_tensor scale;
  anynpu_tensor bias;
  anynpu_tensor input_scale;
  anynpu_tensor input_offset;
  anynpu_tensor index;
  anynpu_tensor y;
  int64_t group_size;   /* 0: no groups */
  int32_t y_is_scratch; /* as of compressed_matmul */
  int32_t reserved;
} anynpu_int8_linear_args;
ANYNPU_API int32_t anynpu_int8_linear_check(const anynpu_int8_linear_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_int8_linear(const anynpu_int8_linear_args* args, void* workspace, size_t workspace_bytes);

typedef enum { ANYNPU_PER_TOKEN = 0, ANYNPU_PER_CHANNEL = 1, ANYNPU_PER_TENSOR = 2 } anynpu_quant_mode;

/* dynamic_quant: v = x * smooth_scales, scale = max |v| / 127 (7 for int4), y = rint(v / scale); zeros give scale 0, codes 0.
 * x FLOAT16, BFLOAT16 or FLOAT32 [..., M, K]; smooth_scales of x's dtype, (K), or (G, K) with group_index, per channel (M);
 * group_index INT32 (G), cumulative row counts; y INT8, INT4, or INT32 [..., K / 8] (eight int4); scale FLOAT32: x's shape
 * without K (per token), without M (per channel), or (1) (per tensor). */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor smooth_scales;
  anynpu_tensor group_index;
  anynpu_tensor y;
  anynpu_tensor scale;
  int32_t quant_mode; /* anynpu_quant_mode */
  int32_t reserved;
} anynpu_dynamic_quant_args;
ANYNPU_API int32_t anynpu_dynamic_quant_check(const anynpu_dynamic_quant_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_dynamic_quant(const anynpu_dynamic_quant_args* args, void* workspace, size_t workspace_bytes);

/* grouped_matmul_combine: y[row_index[r]] += (x[r] @ W_e scaled) * pertoken_scale[r] * logit[r] for the rows r of group e, then
 * y[shared_input_offset + i] += shared_input[i] * shared_input_weight; y starts at zero.
 * x INT8 (M, K); weight INT8 or INT4 (E, K, N), or INT32 (E, K, N / 8); group_list INT64 (E), row counts (group_list_type 1) or
 * their running sums (0), rows behind the last group are not read; row_index INT64, INT32 or FLOAT32 (M), below y.shape[0].
 * INT8: acc * scale, scale FLOAT32 or BFLOAT16 (E, N), no bias, no offset.
 * Int4: sum_g (acc_g - 8 * sum_k W) * scale_g + bias + sum_k x * offset; scale INT64 or UINT64 (E, G, N), G divides K, the low
 * 32 bits are a float32; bias FLOAT32 (E, N); offset FLOAT32 (E, 1, N).
 * pertoken_scale, logit FLOAT32 (M); shared_input BFLOAT16 (S, N); y FLOAT32 (B, N). bias, offset, pertoken_scale, logit and
 * shared_input may be absent. All but x, weight and shared_input contiguous.
 * With INT8 weights and y INT32 (M, N), all other tensors but group_list absent: y[r] = x[r] @ W_e, and 0 behind the last group. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor weight;
  anynpu_tensor scale;
  anynpu_tensor group_list;
  anynpu_tensor row_index;
  anynpu_tensor bias;
  anynpu_tensor offset;
  anynpu_tensor pertoken_scale;
  anynpu_tensor logit;
  anynpu_tensor shared_input;
  anynpu_tensor y;
  int64_t shared_input_offset;
  float shared_input_weight;
  int32_t group_list_type;
} anynpu_grouped_matmul_combine_args;
ANYNPU_API int32_t anynpu_grouped_matmul_combine_check(const anynpu_grouped_matmul_combine_args* args,
                                                       size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_grouped_matmul_combine(const anynpu_grouped_matmul_combine_args* args, void* workspace,
                                                 size_t workspace_bytes);

/* dequant_swiglu_quant: of each row of x, dequantised, one half is activated and multiplied by the other, then quantised.
 * x INT32, FLOAT32, FLOAT16 or BFLOAT16 [..., 2 H]. INT32 x: (x + integer bias) * weight_scale * activation_scale + float bias with
 * weight_scale FLOAT32 (G, 2 H), activation_scale FLOAT32 (a value for each row), bias (2 H); else these have no effect.
 * swiglu_mode 0: a * sigmoid(a) * b, a the right half, or the left one with activate_left. Mode 1: even columns g, odd
 * ones u, g = min(g, clamp_limit), u within +- clamp_limit, g * sigmoid(glu_alpha * g) * (u + glu_bias). Mode 2: the
 * halves of mode 0 as g and u of mode 1.
 * quant_mode 0: y = value / quant_scale + quant_offset, scale 0. Mode 1: value *= quant_scale, scale = max |value| / 127 of
 * the row, y = value / scale. quant_scale (G, H) or (G), quant_offset likewise.
 * group_index INT64 (G): consecutive row counts; rows beyond get zeros; absent: one group. y INT8 [..., H], scale FLOAT32 [...]. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor weight_scale;
  anynpu_tensor activation_scale;
  anynpu_tensor bias;
  anynpu_tensor quant_scale;
  anynpu_tensor quant_offset;
  anynpu_tensor group_index;
  anynpu_tensor y;
  anynpu_tensor scale;
  int32_t activate_left;
  int32_t quant_mode;
  int32_t swiglu_mode;
  float clamp_limit;
  float glu_alpha;
  float glu_bias;
} anynpu_dequant_swiglu_quant_args;
ANYNPU_API int32_t anynpu_dequant_swiglu_quant_check(const anynpu_dequant_swiglu_quant_args* args,
                                                     size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_dequant_swiglu_quant(const anynpu_dequant_swiglu_quant_args* args, void* workspace,
                                               size_t workspace_bytes);

/* moe_init_routing: sorts the slots f = n K + j of expert_idx INT32 (N, K), stably, by expert and copies x's rows in that order.
 * Experts [first_expert, last_expert) are routed, A slots; the other slots come last: above the range by expert, then below.
 * x (N, H) FLOAT32, FLOAT16, BFLOAT16 or (quant_mode -1) INT8.
 * drop_pad_mode 0: expanded_x (R, H), R at most N K: row i is x[order[i] / K] for i < A, else 0.
 * drop_pad_mode 1: expanded_x (expert_num, expert_capacity, H): the first slots of each expert, then zeros.
 * expanded_row_idx INT32 (N K): row_idx_type 0: at slot f its row in expanded_x or -1; type 1: order.
 * expert_tokens INT64 or INT32, or absent: type 0 running sums, 1 counts, both (last - first); 2 (expert_num, 2) pairs (expert, count) of the
 * experts with tokens, then zeros; with drop_pad_mode 1 counts of all tokens, kept or not.
 * quant_mode -1: copies, scale FLOAT32 (N) or absent travels along; 0: x * scale + offset, both (1); 1: value = x * scale,
 * scale (last - first, H), (1, H) or absent, max |value| / 127 is the row's expanded_scale. expanded_scale FLOAT32 (rows) or absent;
 * zeros where a row has none. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor expert_idx;
  anynpu_tensor scale;
  anynpu_tensor offset;
  anynpu_tensor expanded_x;
  anynpu_tensor expanded_row_idx;
  anynpu_tensor expert_tokens;
  anynpu_tensor expanded_scale;
  int64_t expert_num;
  int64_t first_expert;
  int64_t last_expert;
  int32_t drop_pad_mode;
  int32_t expert_tokens_num_type;
  int32_t quant_mode;
  int32_t row_idx_type;
} anynpu_moe_init_routing_args;
ANYNPU_API int32_t anynpu_moe_init_routing_check(const anynpu_moe_init_routing_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_moe_init_routing(const anynpu_moe_init_routing_args* args, void* workspace,
                                           size_t workspace_bytes);

/* swiglu: y = a * sigmoid(a) * b, a the first half of x along `dim`, b the second. x FLOAT32, FLOAT16 or BFLOAT16 of 1 to 8
 * axes, of an even size along dim; y of x's dtype, half as large there; both contiguous. A negative dim counts from the end. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor y;
  int64_t dim;
} anynpu_swiglu_args;
ANYNPU_API int32_t anynpu_swiglu_check(const anynpu_swiglu_args* args, size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_swiglu(const anynpu_swiglu_args* args, void* workspace, size_t workspace_bytes);

/* moe_finalize_routing: y[n] = skip1[n] + skip2[n] + sum over j < K of scales[n, j] * (row v + bias[expert_idx[n, j]]), in
 * float32 in that order. expanded_rows (R, H) or (E, C, H), whose first axes count as one; skips (N, H), bias (E, H) and
 * y (N, H): one dtype of FLOAT32, FLOAT16, BFLOAT16; scales (N, K) of any of them. Absent skips and bias are 0, scales 1.
 * row_idx INT32 (N K): v is row_idx[j N + n] with drop_pad_mode 0 and 1, row_idx[n K + j] with 2 and 3; -1: a row of zeros.
 * expert_idx INT32 (N, K), needed with bias. All contiguous. */
typedef struct {
  anynpu_tensor expanded_rows;
  anynpu_tensor skip1;
  anynpu_tensor skip2;
  anynpu_tensor bias;
  anynpu_tensor scales;
  anynpu_tensor row_idx;
  anynpu_tensor expert_idx;
  anynpu_tensor y;
  int64_t drop_pad_mode;
} anynpu_moe_finalize_routing_args;
ANYNPU_API int32_t anynpu_moe_finalize_routing_check(const anynpu_moe_finalize_routing_args* args,
                                                     size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_moe_finalize_routing(const anynpu_moe_finalize_routing_args* args, void* workspace,
                                               size_t workspace_bytes);

/* moe_gating_topk_softmax: the k largest of softmax(x) in each row, the largest first, NaN before all, ties to the lower
 * index; float16 probabilities are rounded before they are compared. x (N, E) or (B, S, E) FLOAT32, FLOAT16 or BFLOAT16;
 * finished BOOL of x's shape without E, or absent: where set, expert E (none) in all places.
 * y of x's dtype, expert_idx INT32, row_idx INT32 or absent (j N + n for choice j of row n): x's shape with k for E.
 * softmax FLOAT32 of x's shape, or absent: of all experts. renorm 1: the k largest logits, then their softmax; no `softmax`
 * then. All contiguous. */
typedef struct {
  anynpu_tensor x;
  anynpu_tensor finished;
  anynpu_tensor y;
  anynpu_tensor expert_idx;
  anynpu_tensor row_idx;
  anynpu_tensor softmax;
  int64_t renorm;
} anynpu_moe_gating_topk_softmax_args;
ANYNPU_API int32_t anynpu_moe_gating_topk_softmax_check(const anynpu_moe_gating_topk_softmax_args* args,
                                                        size_t* workspace_bytes);
ANYNPU_API int32_t anynpu_moe_gating_topk_softmax(const anynpu_moe_gating_topk_softmax_args* args, void* workspace,
                                                  size_t workspace_bytes);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_H_ */
