/* SPDX-License-Identifier: Apache-2.0
 *
 * What the machine can do: streaming read bandwidth and peak rates of the instructions that matmuls are made of.
 * Compiled for the machine it runs on by roofs.py. A rate is 0 where the CPU lacks the instruction. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#else
#define VECTOR_BYTES 32
#endif
/* Independent accumulators: more than latency times ports, fewer than the registers. Single variables, since GCC keeps
 * an array of them in memory. */
#define CHAINS 12
#define EACH(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define MAX_THREADS 256
#define READ_BYTES ((size_t)256 << 20)

typedef float floats __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t words __attribute__((vector_size(VECTOR_BYTES)));
typedef void (*work_function)(int index, int threads, long iterations);

static volatile uint64_t sink;
static const uint8_t* read_buffer;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Four streams: with pages of 4 KiB one waits at the beginning of each, the longer the more scattered they are. */
static void read_slice(int index, int threads, long iterations) {
  (void)iterations;
  const size_t bytes = READ_BYTES / (size_t)threads & ~(size_t)16383, part = bytes / 4 / VECTOR_BYTES;
  const words* slice = (const words*)(read_buffer + bytes * (size_t)index);
  words sums[8];
  memset(sums, 0, sizeof sums);
  for (size_t i = 0; i + 2 <= part; i += 2) {
    for (size_t j = 0; j < 8; ++j) sums[j] ^= slice[j / 2 * part + i + j % 2];
  }
  for (int j = 0; j < 8; ++j) sink += sums[j][0];
}

static void multiply_add(int index, int threads, long iterations) {
  (void)threads;
  floats factor = {0}, term = {0};
  factor += 1.0f + 1e-7f * (float)index;
  term += 1e-9f;
#define START(j) floats sum##j = term * (float)j;
#define STEP(j) sum##j = sum##j * factor + term;
#define KEEP(j) sink += (uint64_t)sum##j[0];
  EACH(START)
  for (long i = 0; i < iterations; ++i) {
    EACH(STEP)
  }
  EACH(KEEP)
#undef START
#undef STEP
#undef KEEP
}

#if defined(__AVX512VNNI__)
static void dot_int8(int index, int threads, long iterations) {
  (void)threads;
  const __m512i a = _mm512_set1_epi32(0x01020304 + index);
  const __m512i b = _mm512_set1_epi32(0x01010101);
#define START(j) __m512i sum##j = _mm512_set1_epi32(j);
#define STEP(j) sum##j = _mm512_dpbusd_epi32(sum##j, a, b);
#define KEEP(j) sink += (uint64_t)_mm512_reduce_add_epi32(sum##j);
  EACH(START)
  for (long i = 0; i < iterations; ++i) {
    EACH(STEP)
  }
  EACH(KEEP)
#undef START
#undef STEP
#undef KEEP
}
#elif defined(__AVX2__)
/* Exact for all int8, which vpmaddubsw is not. */
static void dot_int8(int index, int threads, long iterations) {
  (void)threads;
  const __m256i a = _mm256_set1_epi32(0x00010002 + index), b = _mm256_set1_epi32(0x00010001);
#define START(j) __m256i sum##j = _mm256_set1_epi32(j);
/* The compiler would take the product out of the loop. */
#define STEP(j) \
  asm volatile("vpmaddwd %2, %1, %%ymm15\n vpaddd %%ymm15, %0, %0" : "+x"(sum##j) : "x"(a), "x"(b) : "xmm15");
#define KEEP(j) sink += (uint64_t)_mm256_extract_epi32(sum##j, 0);
  EACH(START)
  for (long i = 0; i < iterations; ++i) {
    EACH(STEP)
  }
  EACH(KEEP)
#undef START
#undef STEP
#undef KEEP
}

/* Bytes up to 15 times int8, added up in int16. */
static void dot_int4(int index, int threads, long iterations) {
  (void)threads;
  const __m256i a = _mm256_set1_epi32(0x01020304 + index), b = _mm256_set1_epi32(0x01010101);
#define START(j) __m256i sum##j = _mm256_set1_epi32(j);
/* The compiler would take the product out of the loop. */
#define STEP(j) \
  asm volatile("vpmaddubsw %2, %1, %%ymm15\n vpaddw %%ymm15, %0, %0" : "+x"(sum##j) : "x"(a), "x"(b) : "xmm15");
#define KEEP(j) sink += (uint64_t)_mm256_extract_epi32(sum##j, 0);
  EACH(START)
  for (long i = 0; i < iterations; ++i) {
    EACH(STEP)
  }
  EACH(KEEP)
#undef START
#undef STEP
#undef KEEP
}
#endif

#if defined(__AVX512BF16__)
static void dot_bf16(int index, int threads, long iterations) {
  (void)threads;
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80 + index);
  const __m512bh b = (__m512bh)_mm512_set1_epi32(0x30003000);
#define START(j) __m512 sum##j = _mm512_set1_ps((float)j);
#define STEP(j) sum##j = _mm512_dpbf16_ps(sum##j, a, b);
#define KEEP(j) sink += (uint64_t)_mm512_reduce_add_ps(sum##j);
  EACH(START)
  for (long i = 0; i < iterations; ++i) {
    EACH(STEP)
  }
  EACH(KEEP)
#undef START
#undef STEP
#undef KEEP
}
#endif

typedef struct {
  work_function work;
  pthread_barrier_t* barrier;
  int index, threads, cpu;
  long iterations;
  double start, end;
} job;

static void* run_job(void* argument) {
  job* j = (job*)argument;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)j->cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
  pthread_barrier_wait(j->barrier);
  j->start = now();
  j->work(j->index, j->threads, j->iterations);
  j->end = now();
  return NULL;
}

/* The i-th CPU that this process may use, counting round again past the last. */
static int allowed_cpu(int i) {
  cpu_set_t set;
  sched_getaffinity(0, sizeof set, &set);
  int left = i % CPU_COUNT(&set);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET((size_t)cpu, &set) && left-- == 0) return cpu;
  }
  return 0;
}

/* Seconds from the first thread's start to the last thread's end. */
static double run(work_function work, int threads, long iterations) {
  static job jobs[MAX_THREADS];
  pthread_t handles[MAX_THREADS];
  pthread_barrier_t barrier;
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  pthread_barrier_init(&barrier, NULL, (unsigned)threads);
  for (int i = 0; i < threads; ++i) {
    jobs[i] = (job){work, &barrier, i, threads, allowed_cpu(i), iterations, 0, 0};
    pthread_create(&handles[i], NULL, run_job, &jobs[i]);
  }
  double start = 1e300, end = 0;
  for (int i = 0; i < threads; ++i) {
    pthread_join(handles[i], NULL);
    if (jobs[i].start < start) start = jobs[i].start;
    if (jobs[i].end > end) end = jobs[i].end;
  }
  pthread_barrier_destroy(&barrier);
  return end - start;
}

static double rate(work_function work, int threads, long iterations, double operations) {
  return operations * CHAINS * (double)iterations * threads / run(work, threads, iterations) / 1e9;
}

static volatile long turns;

/* Two threads take turns at a counter, whose cache line goes from one to the other each time. */
static void hand_over(int index, int threads, long iterations) {
  (void)threads;
  for (long i = 0; i < iterations; ++i) {
    while (turns % 2 != index) {
    }
    ++turns;
  }
}

/* Nanoseconds until a thread sees what one on another CPU has written; 0 where there is one CPU alone. */
double anynpu_handover(long iterations) {
  if (allowed_cpu(0) == allowed_cpu(1)) return 0;
  turns = 0;
  return 1e9 * run(hand_over, 2, iterations) / (2.0 * (double)iterations);
}

/* GB/s of reading 256 MiB once. */
double anynpu_roof_read(int threads, long iterations) {
  (void)iterations;
  if (read_buffer == NULL) {
    uint64_t* fresh = aligned_alloc(4096, READ_BYTES);
    if (fresh == NULL) return 0;
    for (size_t i = 0; i < READ_BYTES / 8; ++i) fresh[i] = i * 0x9E3779B97F4A7C15ull;
    read_buffer = (const uint8_t*)fresh;
  }
  return (double)READ_BYTES / run(read_slice, threads, 0) / 1e9;
}

/* Gflop/s of fp32 multiply-add. */
double anynpu_roof_fp32(int threads, long iterations) {
  return rate(multiply_add, threads, iterations, 2.0 * VECTOR_BYTES / 4);
}

/* Gop/s of exact int8 products: vpdpbusd, or in AVX2 vpmaddwd and an addition. */
double anynpu_roof_int8(int threads, long iterations) {
#if defined(__AVX512VNNI__)
  return rate(dot_int8, threads, iterations, 2.0 * 64);
#elif defined(__AVX2__)
  return rate(dot_int8, threads, iterations, 2.0 * 16);
#else
  (void)threads, (void)iterations;
  return 0;
#endif
}

/* Gop/s of products of int4 with int8: vpdpbusd, or in AVX2 vpmaddubsw and an addition. */
double anynpu_roof_int4(int threads, long iterations) {
#if defined(__AVX512VNNI__)
  return rate(dot_int8, threads, iterations, 2.0 * 64);
#elif defined(__AVX2__)
  return rate(dot_int4, threads, iterations, 2.0 * 32);
#else
  (void)threads, (void)iterations;
  return 0;
#endif
}

/* Gflop/s of vdpbf16ps. */
double anynpu_roof_bf16(int threads, long iterations) {
#if defined(__AVX512BF16__)
  return rate(dot_bf16, threads, iterations, 2.0 * 32);
#else
  (void)threads, (void)iterations;
  return 0;
#endif
}
