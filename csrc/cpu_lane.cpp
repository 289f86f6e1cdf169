#include "cpu_lane.hpp"

#include <utility>

#include "error.hpp"

namespace energy {

std::optional<std::string> CpuLane::read() {
    CpuReading reading{};
    try {
        reading.before_ns = clock_.now_ns();
        reading.count = counter_->read();
        reading.after_ns = clock_.now_ns();
    } catch (const CounterError& error) {
        if (std::exchange(failing_, true)) return std::nullopt;
        return std::string("an energy counter of the CPU failed, and is tried again: ") + error.what();
    }
    failing_ = false;
    ring.push(reading);
    return std::nullopt;
}

}  // namespace energy
