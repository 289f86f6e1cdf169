// Polls one reading of power at its own refresh period. A sample is stamped with the refresh that it is of.
#pragma once

#include <cstdint>

#include "power_lane.hpp"
#include "refresh_clock.hpp"

namespace energy {

class PolledLane : public PowerLane {
  public:
    PolledLane(PowerReading reading, const Nvml& nvml, const Clock& clock, size_t capacity)
        : PowerLane(nvml, clock, capacity), reading_(reading) {}
    void open(abi::Device device) noexcept override;
    void poll() override;
    int64_t next_poll_ns() const noexcept override { return refresh_.next_ns(); }

  private:
    const PowerReading reading_;
    abi::Device device_ = nullptr;
    RefreshClock refresh_;
    int64_t last_t_ns_ = INT64_MIN;
};

}  // namespace energy
