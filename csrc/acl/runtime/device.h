// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace anynpu::acl {

// Whether any thread has set a device or context that is still there.
bool has_device();

}  // namespace anynpu::acl
