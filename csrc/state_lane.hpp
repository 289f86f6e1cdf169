// Reads the clock, temperature, limits, utilisation and clock-event reasons of one device: a few microseconds.
//
// One thread at a time drives a lane, another may drain its ring and read its counts. A field that this driver, card or
// user does not have stays NaN (reasons: -1) and is asked for once; probe() says why. When no field can be read,
// NvmlError is thrown out of the lane, which is then as good as before.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "clock.hpp"
#include "nvml.hpp"
#include "ring.hpp"

namespace energy {

struct StateReading {
    int64_t t_ns;
    double sm_clock_mhz, temperature_c, enforced_limit_w, requested_limit_w, utilisation;
    int64_t clock_reasons;
};

class StateLane {
  public:
    StateLane(const Nvml& nvml, const Clock& clock, size_t capacity) : ring(capacity), nvml_(nvml), clock_(clock) {}
    void open(abi::Device device) noexcept { device_ = device; }
    void forget() noexcept;  // which fields are absent
    void drain();            // does nothing within half a second of the reading before

    Ring<StateReading> ring;
    std::atomic<int64_t> driver_ns{0};

  private:
    const Nvml& nvml_;
    const Clock& clock_;
    abi::Device device_ = nullptr;
    int64_t last_ns_ = INT64_MIN / 2;
    std::array<bool, 6> absent_{};
};

}  // namespace energy
