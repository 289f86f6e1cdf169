// Reads one device's energy counter, and finds the instant at which it refreshes.
//
// One thread at a time drives a lane, another may drain its ring and read its counts. A failing driver call throws
// NvmlError out of the lane, which is then as good as before.
#pragma once

#include <atomic>
#include <cstdint>

#include "clock.hpp"
#include "nvml.hpp"
#include "ring.hpp"

namespace energy {

// The counter stood at energy_j at some instant of [before_ns, after_ns]; with edge = 1 it came to that value there.
struct CounterReading {
    int64_t before_ns;
    int64_t after_ns;
    double energy_j;
    uint8_t edge;
};

class EnergyLane {
  public:
    EnergyLane(const Nvml& nvml, const Clock& clock, size_t capacity) : ring(capacity), nvml_(nvml), clock_(clock) {}
    void open(abi::Device device) noexcept { device_ = device; }
    void read();
    void begin_burst() noexcept { burst_left_ = kBurstReads; }
    void end_burst() noexcept { burst_left_ = 0; }
    bool in_burst() const noexcept { return burst_left_ > 0; }
    void read_in_burst();  // ends the burst when the counter has changed, or after 40 reads

    Ring<CounterReading> ring;
    std::atomic<int64_t> driver_ns{0};
    std::atomic<uint64_t> reads{0};

  private:
    static constexpr int kBurstReads = 40;  // of >= 3 ms: longer than one refresh of 100 ms
    CounterReading take();

    const Nvml& nvml_;
    const Clock& clock_;
    abi::Device device_ = nullptr;
    int burst_left_ = 0;
    CounterReading last_{};  // within a burst
};

}  // namespace energy
