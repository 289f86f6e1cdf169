#include "power_lane.hpp"

#include "buffer_lane.hpp"
#include "polled_lane.hpp"

namespace energy {
namespace {

class NoLane : public PowerLane {
  public:
    NoLane(const Nvml& nvml, const Clock& clock) : PowerLane(nvml, clock, 2) {}
    void open(abi::Device) noexcept override {}
};

}  // namespace

std::unique_ptr<PowerLane> PowerLane::of(PowerSource source, const Nvml& nvml, const Clock& clock, size_t capacity) {
    switch (source) {
        case PowerSource::kSampleBuffer:
            return std::make_unique<BufferLane>(nvml, clock, capacity);
        case PowerSource::kInstant:
            return std::make_unique<PolledLane>(PowerReading::kInstant, nvml, clock, capacity);
        case PowerSource::kAverage:
            return std::make_unique<PolledLane>(PowerReading::kAverage, nvml, clock, capacity);
        case PowerSource::kUsage:
            return std::make_unique<PolledLane>(PowerReading::kUsage, nvml, clock, capacity);
        case PowerSource::kNone:
            break;
    }
    return std::make_unique<NoLane>(nvml, clock);
}

}  // namespace energy
