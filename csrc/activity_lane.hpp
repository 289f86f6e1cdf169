// Reads how busy the parts of one device were since the reading before: 0.3 ms (H200).
//
// One thread at a time drives a lane, another may drain its ring and read its counts. A failing driver call throws
// NvmlError out of the lane, which is then as good as before.
#pragma once

#include <atomic>
#include <cstdint>

#include "clock.hpp"
#include "gpm.hpp"
#include "ring.hpp"

namespace energy {

struct ActivityReading {
    int64_t start_ns, end_ns;
    double sm, occupancy, tensor, dram, nvlink_rx_bytes_per_s, nvlink_tx_bytes_per_s;
};

class ActivityLane {
  public:
    ActivityLane(const Nvml& nvml, const Clock& clock, size_t capacity) : ring(capacity), clock_(clock), gpm_(nvml) {}
    void open(abi::Device device) noexcept;  // the next drain only begins a reading
    void drain();                            // does nothing within 100 ms of the drain before

    Ring<ActivityReading> ring;
    std::atomic<int64_t> driver_ns{0};

  private:
    const Clock& clock_;
    Gpm gpm_;
    abi::Device device_ = nullptr;
    int64_t start_ns_ = 0;  // of the reading that the next drain ends; 0: none begun
};

}  // namespace energy
