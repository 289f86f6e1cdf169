#include "polled_lane.hpp"

namespace energy {

void PolledLane::open(abi::Device device) noexcept {
    device_ = device;
    refresh_ = RefreshClock();
}

void PolledLane::poll() {
    const int64_t before = clock_.now_ns();
    const double power_w = nvml_.power_w(device_, reading_);
    const int64_t after = clock_.now_ns();
    driver_ns.fetch_add(after - before, std::memory_order_relaxed);
    const auto refresh = refresh_.feed(before, after, power_w);
    if (!refresh || *refresh <= last_t_ns_) return;
    last_t_ns_ = *refresh;
    ring.push({*refresh, power_w});
}

}  // namespace energy
