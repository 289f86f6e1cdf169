// Drains the driver's buffer of power samples and maps their wall-clock stamps to the one clock.
#pragma once

#include <cstdint>
#include <vector>

#include "power_lane.hpp"

namespace energy {

class BufferLane : public PowerLane {
  public:
    BufferLane(const Nvml& nvml, const Clock& clock, size_t capacity) : PowerLane(nvml, clock, capacity) {}
    void open(abi::Device device) noexcept override;  // the next drain takes all that the driver still holds
    void drain() override;

  private:
    struct Offsets {  // wall minus monotonic
        int64_t now_ns;
        int64_t before_step_ns;  // the same, where the wall clock was not set far since the drain before
    };
    void keep(const std::vector<StampedPower>& batch, Offsets offsets, int64_t now_ns);
    void note_step(int64_t step_ns);
    void keep_around_step(const std::vector<StampedPower>& batch, int64_t offset_ns, int64_t now_ns);

    abi::Device device_ = nullptr;
    int64_t last_seen_us_ = 0;           // stamp of the newest sample kept; 0: ask for all
    int64_t wall_offset_ns_ = 0;         // wall minus monotonic, at the drain before
    int64_t last_t_ns_ = INT64_MIN;      // of the newest sample kept
    int64_t last_new_ns_ = 0;            // when a drain last brought something
    int64_t period_ns_ = 20'000'000;     // between samples, as last seen
    bool opened_ = false;                // no drain since open()
    int64_t near_step_ns_ = 0;           // by which the wall clock was set lately, a little; 0: not known
    int64_t near_until_ns_ = INT64_MIN;  // when the driver will have forgotten the time before
};

}  // namespace energy
