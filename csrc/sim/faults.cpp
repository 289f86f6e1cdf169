#include "faults.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "nvml_types.hpp"

namespace sim {
namespace {

bool in_force(const Fault& fault, std::int64_t now_ns) {
    return fault.active && fault.what.from_ns <= now_ns && now_ns < fault.what.until_ns;
}

bool changes_device(const char* call) {
    return std::strncmp(call, "nvmlDeviceSet", 13) == 0 || std::strncmp(call, "nvmlDeviceReset", 15) == 0;
}

bool names(const Fault& fault, const char* call) {
    return fault.what.call[0] == '\0' ? changes_device(call) : std::strcmp(fault.what.call, call) == 0;
}

}  // namespace

Trouble trouble(const Device& device, const char* call, std::int64_t now_ns) {
    Trouble met = {NVML_SUCCESS, 0};
    for (const Fault& fault : device.faults) {
        if (!in_force(fault, now_ns)) continue;
        const EpSimFaultKind kind = fault.what.kind;
        if (kind == kGpuLost) met.code = NVML_ERROR_GPU_IS_LOST;
        if (kind == kMissingSymbol && names(fault, call)) met.code = NVML_ERROR_FUNCTION_NOT_FOUND;
        if (kind == kNotSupported && names(fault, call)) met.code = NVML_ERROR_NOT_SUPPORTED;
        if (kind == kNoPermission && names(fault, call)) met.code = NVML_ERROR_NO_PERMISSION;
        if (kind == kHang && names(fault, call)) met.delay_ns += static_cast<std::int64_t>(fault.what.amount * 1e9);
    }
    return met;
}

Trouble system_trouble(const State& state, const char* call, std::int64_t now_ns) {
    Trouble met = {NVML_SUCCESS, 0};
    for (std::uint32_t index = 0; index < state.config.device_count; ++index) {
        for (const Fault& fault : state.device(index).faults) {
            if (!in_force(fault, now_ns)) continue;
            const EpSimFaultKind kind = fault.what.kind;
            if (kind == kDriverMismatch) met.code = NVML_ERROR_LIB_RM_VERSION_MISMATCH;
            if (kind == kMissingSymbol && names(fault, call)) met.code = NVML_ERROR_FUNCTION_NOT_FOUND;
            if (kind == kHang && names(fault, call)) met.delay_ns = static_cast<std::int64_t>(fault.what.amount * 1e9);
        }
    }
    return met;
}

bool ignored(const Device& device, const char* call, std::int64_t now_ns) {
    return std::any_of(std::begin(device.faults), std::end(device.faults), [&](const Fault& fault) {
        return fault.what.kind == kIgnored && in_force(fault, now_ns) && names(fault, call);
    });
}

double enforced_limit_w(const Device& device, std::int64_t now_ns) {
    double limit_w = device.limit_w;
    for (const Fault& fault : device.faults) {
        if (fault.what.kind == kForeignLimit && in_force(fault, now_ns)) limit_w = std::min(limit_w, fault.what.amount);
    }
    return limit_w;
}

bool lasts(EpSimFaultKind kind) { return kind == kCounterReset || kind == kCounterJump; }

bool has_fault(const Device& device, EpSimFaultKind kind, std::int64_t now_ns) {
    return std::any_of(std::begin(device.faults), std::end(device.faults),
                       [&](const Fault& fault) { return fault.what.kind == kind && in_force(fault, now_ns); });
}

}  // namespace sim
