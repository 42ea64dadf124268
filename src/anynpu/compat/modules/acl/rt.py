# SPDX-License-Identifier: Apache-2.0
"""``acl.rt``: devices, contexts, streams, events and memory of AscendCL."""

from __future__ import annotations

from ctypes import c_float, c_int32, c_size_t, c_uint32
from ctypes import c_void_p as address

from acl._library import function
from anynpu.compat.errors import module_getattr

_COPY = (address, c_size_t, address, c_size_t, c_int32)

set_device = function("aclrtSetDevice", [c_int32])
reset_device = function("aclrtResetDevice", [c_int32])
get_device = function("aclrtGetDevice", results=[c_int32])
get_device_count = function("aclrtGetDeviceCount", results=[c_uint32])
get_run_mode = function("aclrtGetRunMode", results=[c_int32])
get_version = function("aclrtGetVersion", results=[c_int32, c_int32, c_int32])
synchronize_device = function("aclrtSynchronizeDevice")

create_context = function("aclrtCreateContext", [c_int32], [address])
destroy_context = function("aclrtDestroyContext", [address])
set_context = function("aclrtSetCurrentContext", [address])
get_context = function("aclrtGetCurrentContext", results=[address])

create_stream = function("aclrtCreateStream", results=[address])
destroy_stream = function("aclrtDestroyStream", [address])
synchronize_stream = function("aclrtSynchronizeStream", [address])
synchronize_stream_with_timeout = function("aclrtSynchronizeStreamWithTimeout", [address, c_int32])
stream_wait_event = function("aclrtStreamWaitEvent", [address, address])

create_event = function("aclrtCreateEvent", results=[address])
create_event_with_flag = function("aclrtCreateEventWithFlag", [c_uint32], [address])
destroy_event = function("aclrtDestroyEvent", [address])
record_event = function("aclrtRecordEvent", [address, address])
reset_event = function("aclrtResetEvent", [address, address])
synchronize_event = function("aclrtSynchronizeEvent", [address])
event_elapsed_time = function("aclrtEventElapsedTime", [address, address], [c_float])

malloc = function("aclrtMalloc", [c_size_t, c_int32], [address])
malloc_align32 = function("aclrtMallocAlign32", [c_size_t, c_int32], [address])
malloc_cached = function("aclrtMallocCached", [c_size_t, c_int32], [address])
mem_flush = function("aclrtMemFlush", [address, c_size_t])
mem_invalidate = function("aclrtMemInvalidate", [address, c_size_t])
free = function("aclrtFree", [address])
malloc_host = function("aclrtMallocHost", [c_size_t], [address])
free_host = function("aclrtFreeHost", [address])
memcpy = function("aclrtMemcpy", _COPY)
memcpy_async = function("aclrtMemcpyAsync", [*_COPY, address])
memset = function("aclrtMemset", [address, c_size_t, c_int32, c_size_t])
memset_async = function("aclrtMemsetAsync", [address, c_size_t, c_int32, c_size_t, address])

__getattr__ = module_getattr(__name__, globals())
