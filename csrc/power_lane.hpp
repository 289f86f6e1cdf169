// Where one device's power samples come from: the driver's buffer, drained now and then, or one reading, polled.
//
// One thread at a time drives a lane, another may drain its ring and read its counts. A failing driver call throws
// NvmlError out of the lane, which is then as good as before.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "clock.hpp"
#include "nvml.hpp"
#include "ring.hpp"

namespace energy {

struct PowerSample {
    int64_t t_ns;
    double power_w;
};

enum class PowerSource { kNone, kSampleBuffer, kInstant, kAverage, kUsage };

class PowerLane {
  public:
    static std::unique_ptr<PowerLane> of(PowerSource source, const Nvml& nvml, const Clock& clock, size_t capacity);

    virtual ~PowerLane() = default;
    PowerLane(const PowerLane&) = delete;
    PowerLane& operator=(const PowerLane&) = delete;

    virtual void open(abi::Device device) noexcept = 0;
    virtual void drain() {}
    virtual void poll() {}
    virtual int64_t next_poll_ns() const noexcept { return INT64_MAX; }  // for ever: it is drained instead

    Ring<PowerSample> ring;  // strictly increasing t_ns
    std::atomic<int64_t> driver_ns{0};
    std::atomic<uint64_t> lost{0};  // samples the driver overwrote between two drains

  protected:
    PowerLane(const Nvml& nvml, const Clock& clock, size_t capacity) : ring(capacity), nvml_(nvml), clock_(clock) {}

    const Nvml& nvml_;
    const Clock& clock_;
};

}  // namespace energy
