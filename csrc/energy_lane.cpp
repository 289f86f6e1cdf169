#include "energy_lane.hpp"

namespace energy {

CounterReading EnergyLane::read() {
    CounterReading reading{};
    reads.fetch_add(1, std::memory_order_relaxed);
    reading.before_ns = clock_.now_ns();
    reading.energy_j = nvml_.energy_j(device_);
    reading.after_ns = clock_.now_ns();
    driver_ns.fetch_add(reading.after_ns - reading.before_ns, std::memory_order_relaxed);
    return reading;
}

}  // namespace energy
