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

// The same for a call that names no device: what is wrong with any of them is in its way.
Trouble system_trouble(const State& state, const char* call, std::int64_t now_ns);

// Whether `call` on the device answers that it succeeded, and changes nothing.
bool ignored(const Device& device, const char* call, std::int64_t now_ns);

// The limit in force: the one asked for, or that of another limiter if it is lower.
double enforced_limit_w(const Device& device, std::int64_t now_ns);

// Whether healing leaves the fault as it is: what the counter has done is done.
bool lasts(EpSimFaultKind kind);

bool has_fault(const Device& device, EpSimFaultKind kind, std::int64_t now_ns);

}  // namespace sim
