// Absolute deadlines on a grid: a late tick does not shift those that follow.
#pragma once

#include <cstdint>

namespace energy {

// The deadline after this one. Those that have passed are skipped, not made up for.
constexpr int64_t next_deadline(int64_t deadline_ns, int64_t period_ns, int64_t now_ns) noexcept {
    return deadline_ns + period_ns > now_ns ? deadline_ns + period_ns : now_ns + period_ns;
}

}  // namespace energy
