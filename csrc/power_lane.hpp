// Drains one device's power samples from the driver's buffer and maps their wall-clock stamps to the one clock.
//
// One thread at a time drives a lane, another may drain its ring and read its counts. A failing driver call throws
// NvmlError out of the lane, which is then as good as before.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "clock.hpp"
#include "nvml.hpp"
#include "ring.hpp"

namespace energy {

struct PowerSample {
    int64_t t_ns;
    double power_w;
};

class PowerLane {
  public:
    PowerLane(const Nvml& nvml, const Clock& clock, size_t capacity) : ring(capacity), nvml_(nvml), clock_(clock) {}
    void open(abi::Device device) noexcept;  // the next drain takes all that the driver still holds
    void drain();

    Ring<PowerSample> ring;  // strictly increasing t_ns
    std::atomic<int64_t> driver_ns{0};
    std::atomic<uint64_t> lost{0};  // samples the driver overwrote between two drains

  private:
    struct Offsets {  // wall minus monotonic
        int64_t now_ns;
        int64_t before_step_ns;  // the same, where the wall clock was not set far since the drain before
    };
    void keep(const std::vector<StampedPower>& batch, Offsets offsets, int64_t now_ns);
    void note_step(int64_t step_ns);
    void keep_around_step(const std::vector<StampedPower>& batch, int64_t offset_ns, int64_t now_ns);

    const Nvml& nvml_;
    const Clock& clock_;
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
