// How busy the parts of a device were, as exactly as its work says. The caller holds the state's lock.
#pragma once

#include <cstdint>

#include "state.hpp"

namespace sim {

// Shares of a stretch of time.
struct Activity {
    double sm;      // some kernel ran, less the time that launching it took
    double tensor;  // the arithmetic of kernels went on
    double dram;    // their memory traffic did
};

// Means over [start_ns, end_ns). A script says only power: what it draws above idle counts as arithmetic.
Activity activity(const State& state, const Device& device, std::int64_t start_ns, std::int64_t end_ns);

}  // namespace sim
