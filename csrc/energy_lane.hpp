// Reads one device's energy counter.
//
// One thread at a time drives a lane, another may drain its ring and read its counts. A failing driver call throws
// NvmlError out of the lane, which is then as good as before.
#pragma once

#include <atomic>
#include <cstdint>

#include "clock.hpp"
#include "counter_reading.hpp"
#include "nvml.hpp"
#include "ring.hpp"

namespace energy {

class EnergyLane {
  public:
    EnergyLane(const Nvml& nvml, const Clock& clock, size_t capacity) : ring(capacity), nvml_(nvml), clock_(clock) {}
    void open(abi::Device device) noexcept { device_ = device; }
    CounterReading read();  // does not put it into the ring

    Ring<CounterReading> ring;
    std::atomic<int64_t> driver_ns{0};
    std::atomic<uint64_t> reads{0};

  private:
    const Nvml& nvml_;
    const Clock& clock_;
    abi::Device device_ = nullptr;
};

}  // namespace energy
