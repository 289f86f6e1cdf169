#include "state_lane.hpp"

#include <algorithm>
#include <limits>

#include "deadline.hpp"

namespace energy {
namespace {

// Most fields change every 100 ms (H200); drains asked for out of turn must not make a second's worth of rows.
constexpr int64_t kShortestNs = StateLane::kPeriodNs / 2;
constexpr int64_t kRemembered = 32;         // reads that a mean is of: the dear ones are one in ten
constexpr int64_t kMostCostNs = 3'000'000;  // a call that takes longer waits: it burns no CPU
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

const StateReading StateLane::kUnknown{0, kNan, kNan, kNan, kNan, kNan, -1};

void StateLane::Pace::took(int64_t cost_ns) noexcept {
    reads = std::min(reads + 1, kRemembered);
    mean_ns += (std::min(cost_ns, kMostCostNs) - mean_ns) / reads;
}

int64_t StateLane::Pace::period_ns() const noexcept {
    return std::clamp(kShare * mean_ns, kPeriodNs, kLongestPeriodNs);
}

void StateLane::forget() noexcept {
    paces_ = {};
    latest_ = kUnknown;
    last_ns_ = INT64_MIN / 2;
}

template <class Value>
void StateLane::read(size_t which, Value (Nvml::*call)(abi::Device) const, Value missing, Value& value, Look& look) {
    Pace& pace = paces_[which];
    // Looks come at about the second: one that is nearer than the next is the one that is meant.
    if (pace.absent || (!always_ && look.t_ns < pace.due_ns - kShortestNs)) return;
    const int64_t before = clock_.now_ns();
    try {
        value = (nvml_.*call)(device_);
        look.any = true;
    } catch (const NvmlError& error) {
        value = missing;
        pace.absent = unavailable(error.code());
        if (!look.trouble || (unavailable(look.trouble->code()) && !pace.absent)) look.trouble = error;
    }
    pace.took(clock_.now_ns() - before);
    pace.due_ns = next_deadline(pace.due_ns, pace.period_ns(), look.t_ns);
}

void StateLane::drain() {
    Look look{clock_.now_ns(), false, std::nullopt};
    if (look.t_ns - last_ns_ < kShortestNs) return;
    read(0, &Nvml::sm_clock_mhz, kUnknown.sm_clock_mhz, latest_.sm_clock_mhz, look);
    read(1, &Nvml::temperature_c, kUnknown.temperature_c, latest_.temperature_c, look);
    read(2, &Nvml::enforced_limit_w, kUnknown.enforced_limit_w, latest_.enforced_limit_w, look);
    read(3, &Nvml::requested_limit_w, kUnknown.requested_limit_w, latest_.requested_limit_w, look);
    read(4, &Nvml::utilisation, kUnknown.utilisation, latest_.utilisation, look);
    read(5, &Nvml::clock_reasons, kUnknown.clock_reasons, latest_.clock_reasons, look);
    driver_ns.fetch_add(clock_.now_ns() - look.t_ns, std::memory_order_relaxed);
    if (look.any) {
        last_ns_ = latest_.t_ns = look.t_ns;
        ring.push(latest_);
        return;
    }
    const bool none = std::all_of(paces_.begin(), paces_.end(), [](const Pace& pace) { return pace.absent; });
    if (none) throw look.trouble.value_or(NvmlError("state", abi::kNotSupported, "no field of it can be read"));
    if (look.trouble && !unavailable(look.trouble->code())) throw *look.trouble;
}

}  // namespace energy
