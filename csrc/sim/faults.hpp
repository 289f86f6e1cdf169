// Scripted failures of the simulated driver. The caller holds the lock.
#pragma once

#include <cstdint>

#include "state.hpp"

namespace sim {

// What a call meets: an NVML return code (0: none) after `delay_ns` of hanging.
struct Trouble {
    int code;
    std::int64_t delay_ns;
};
Trouble trouble(const Device& device, const char* call, std::int64_t now_ns);

bool has_fault(const Device& device, EpSimFaultKind kind, std::int64_t now_ns);

}  // namespace sim
