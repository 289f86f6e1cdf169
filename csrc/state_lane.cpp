#include "state_lane.hpp"

#include <cmath>
#include <optional>

#include "error.hpp"

namespace energy {
namespace {

// Most of these change every 100 ms (H200); drains asked for out of turn must not make a second's worth of rows.
constexpr int64_t kShortestNs = 500'000'000;

}  // namespace

void StateLane::forget() noexcept {
    absent_ = {};
    last_ns_ = INT64_MIN / 2;
}

void StateLane::drain() {
    const int64_t before = clock_.now_ns();
    if (before - last_ns_ < kShortestNs) return;
    bool any = false;
    std::optional<NvmlError> trouble;
    const auto field = [&](size_t which, auto read, auto missing) {
        if (absent_[which]) return missing;
        try {
            const auto value = (nvml_.*read)(device_);
            any = true;
            return value;
        } catch (const NvmlError& error) {
            absent_[which] = unavailable(error.code());
            if (!trouble || (unavailable(trouble->code()) && !absent_[which])) trouble = error;
            return missing;
        }
    };
    const double unknown = std::nan("");
    const StateReading reading{before,
                               field(0, &Nvml::sm_clock_mhz, unknown),
                               field(1, &Nvml::temperature_c, unknown),
                               field(2, &Nvml::enforced_limit_w, unknown),
                               field(3, &Nvml::requested_limit_w, unknown),
                               field(4, &Nvml::utilisation, unknown),
                               field(5, &Nvml::clock_reasons, int64_t{-1})};
    driver_ns.fetch_add(clock_.now_ns() - before, std::memory_order_relaxed);
    if (!any) throw trouble.value_or(NvmlError("state", abi::kNotSupported, "no field of it can be read"));
    last_ns_ = before;
    ring.push(reading);
}

}  // namespace energy
