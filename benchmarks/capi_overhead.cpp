// SPDX-License-Identifier: Apache-2.0
// What a two-stage call costs its caller on a tiny tensor: both stages of aclnnCast on 8 values, the synchronisation
// after each call on top, and a launch of a repeatable executor.
//   anynpu cc benchmarks/capi_overhead.cpp -O2 -o overhead && ./overhead
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "acl/acl.h"
#include "aclnnop/aclnn_cast.h"

namespace {

constexpr int kRounds = 15, kCalls = 2000;

// Median over rounds of the mean time of one call, in µs; streams are drained between rounds, outside the measurement.
template <typename Call>
double measure(aclrtStream stream, const Call& call) {
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) call();
    const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
    aclrtSynchronizeStream(stream);
    rounds.push_back(spent.count() / kCalls);
  }
  std::sort(rounds.begin(), rounds.end());
  return rounds[kRounds / 2];
}

aclTensor* make_tensor(aclDataType dtype, void* data) {
  const int64_t shape[] = {8};
  return aclCreateTensor(shape, 1, dtype, nullptr, 0, ACL_FORMAT_ND, shape, 1, data);
}

}  // namespace

int main() {
  aclrtStream stream = nullptr;
  void *from = nullptr, *to = nullptr;
  aclInit(nullptr);
  aclrtSetDevice(0);
  aclrtCreateStream(&stream);
  aclrtMalloc(&from, 32, ACL_MEM_MALLOC_HUGE_FIRST);
  aclrtMalloc(&to, 32, ACL_MEM_MALLOC_HUGE_FIRST);
  aclrtMemset(from, 32, 0, 32);
  aclTensor *x = make_tensor(ACL_FLOAT, from), *y = make_tensor(ACL_INT32, to);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  bool ok = true;
  const auto two_stages = [&] {
    ok &= aclnnCastGetWorkspaceSize(x, ACL_INT32, y, &size, &executor) == ACLNN_SUCCESS;
    ok &= aclnnCast(nullptr, size, executor, stream) == ACLNN_SUCCESS;
  };
  two_stages();
  aclrtSynchronizeStream(stream);
  std::printf("two stages                    %6.2f us\n", measure(stream, two_stages));
  std::printf("two stages and a wait         %6.2f us\n", measure(stream, [&] {
                two_stages();
                ok &= aclrtSynchronizeStream(stream) == ACL_SUCCESS;
              }));
  ok &= aclnnCastGetWorkspaceSize(x, ACL_INT32, y, &size, &executor) == ACLNN_SUCCESS;
  ok &= aclSetAclOpExecutorRepeatable(executor) == ACLNN_SUCCESS;
  std::printf("launch of a repeatable        %6.2f us\n",
              measure(stream, [&] { ok &= aclnnCast(nullptr, size, executor, stream) == ACLNN_SUCCESS; }));
  aclDestroyAclOpExecutor(executor);
  aclDestroyTensor(x);
  aclDestroyTensor(y);
  aclrtFree(from);
  aclrtFree(to);
  aclrtDestroyStream(stream);
  aclrtResetDevice(0);
  aclFinalize();
  if (!ok) std::puts("a call failed");
  return ok ? 0 : 1;
}
