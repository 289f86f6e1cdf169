#include "polled_lane.hpp"

namespace energy {
namespace {

constexpr int64_t kHungNs = 50'000'000;

}  // namespace

void PolledLane::open(abi::Device device) noexcept {
    if (device != device_) refresh_ = RefreshClock();  // a retry of another lane must not begin to learn anew
    device_ = device;
}

void PolledLane::poll() {
    const int64_t before = clock_.now_ns();
    const double power_w = nvml_.power_w(device_, reading_);
    const int64_t after = clock_.now_ns();
    driver_ns.fetch_add(after - before, std::memory_order_relaxed);
    const auto refresh = refresh_.feed(before, after, power_w);
    if (after - before > kHungNs) return;  // nobody knows when in that time the driver looked
    if (!refresh || *refresh <= last_t_ns_) return;
    last_t_ns_ = *refresh;
    ring.push({*refresh, power_w});
}

}  // namespace energy
