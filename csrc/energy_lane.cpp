#include "energy_lane.hpp"

namespace energy {

void EnergyLane::read() { ring.push(take()); }

void EnergyLane::read_in_burst() {
    CounterReading now = take();
    if (burst_left_ == kBurstReads) {
        ring.push(now);
    } else if (now.energy_j != last_.energy_j) {
        now.before_ns = last_.before_ns;
        now.edge = 1;
        ring.push(now);
        end_burst();
        return;
    }
    last_ = now;
    --burst_left_;
}

CounterReading EnergyLane::take() {
    CounterReading reading{};
    reads.fetch_add(1, std::memory_order_relaxed);
    reading.before_ns = clock_.now_ns();
    reading.energy_j = nvml_.energy_j(device_);
    reading.after_ns = clock_.now_ns();
    driver_ns.fetch_add(reading.after_ns - reading.before_ns, std::memory_order_relaxed);
    return reading;
}

}  // namespace energy
