// The size of this machine's caches.
#pragma once

#include <cstdint>

namespace hrm {

// Bytes of the L2 cache of a core; 512 KB where the system does not say.
int64_t l2_cache();

}  // namespace hrm
