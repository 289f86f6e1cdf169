#include "buffer_lane.hpp"

#include <cstdlib>
#include <utility>
#include <vector>

namespace energy {
namespace {

// NTP slews by at most 0.5 ms a second; anything beyond this between two drains is a step.
constexpr int64_t kStepNs = 5'000'000;
// Stamps from before and after a step as long as this cannot be confused; after a shorter one what is not certain is
// dropped.
constexpr int64_t kFarNs = 60'000'000'000;
// With samples every 20 ms, delivered up to 0.2 s late, this long without one means that our stamp is of no use.
constexpr int64_t kStarvedNs = 3'000'000'000;
// A stamp later than this after the drain belongs to a wall clock that has since been set back.
constexpr int64_t kFutureNs = 50'000'000;
constexpr int64_t kGapPeriods = 5;

// Wall minus monotonic, from the tightest of three brackets: a preempted read would shift every sample.
int64_t wall_offset_ns(const Clock& clock) {
    int64_t offset = 0;
    int64_t narrowest = INT64_MAX;
    for (int i = 0; i < 3; ++i) {
        const int64_t before = clock.now_ns();
        const int64_t wall = clock.wall_ns();
        const int64_t after = clock.now_ns();
        if (after - before < narrowest) {
            narrowest = after - before;
            offset = wall - before - narrowest / 2;
        }
    }
    return offset;
}

}  // namespace

void BufferLane::open(abi::Device device) noexcept {
    device_ = device;
    last_seen_us_ = 0;
    opened_ = true;
}

void BufferLane::drain() {
    const int64_t offset = wall_offset_ns(clock_);
    const bool stepped = std::abs(offset - wall_offset_ns_) > kStepNs;
    if (stepped || clock_.now_ns() - last_new_ns_ > kStarvedNs) last_seen_us_ = 0;

    std::vector<StampedPower> batch;
    const int64_t before = clock_.now_ns();
    nvml_.power_samples(device_, last_seen_us_, batch);
    const int64_t after = clock_.now_ns();
    driver_ns.fetch_add(after - before, std::memory_order_relaxed);

    const int64_t earlier_offset = std::exchange(wall_offset_ns_, wall_offset_ns(clock_));
    if (std::abs(wall_offset_ns_ - offset) > kStepNs) {
        last_seen_us_ = 0;  // stepped during the call: nobody knows which stamps are of which clock; ask again
        return;
    }
    const bool far = std::abs(offset - earlier_offset) > kFarNs;
    keep(batch, {offset, far ? earlier_offset : offset}, after);
}

void BufferLane::keep(const std::vector<StampedPower>& batch, Offsets offsets, int64_t now_ns) {
    if (batch.size() > 1) {
        const int64_t span_us = batch.back().wall_us - batch.front().wall_us;
        if (span_us > 0) period_ns_ = span_us * 1000 / static_cast<int64_t>(batch.size() - 1);
    }
    for (const StampedPower& sample : batch) {
        const auto possible = [&](int64_t t_ns) { return t_ns > last_t_ns_ && t_ns <= now_ns + kFutureNs; };
        // After a step of the wall clock, what it stamped before is told by making no sense on the new one.
        int64_t t_ns = sample.wall_us * 1000 - offsets.now_ns;
        if (!possible(t_ns)) t_ns = sample.wall_us * 1000 - offsets.before_step_ns;
        if (!possible(t_ns)) continue;
        if (!opened_ && t_ns - last_t_ns_ > kGapPeriods * period_ns_) {
            lost.fetch_add(static_cast<uint64_t>((t_ns - last_t_ns_) / period_ns_ - 1), std::memory_order_relaxed);
        }
        opened_ = false;
        last_t_ns_ = t_ns;
        last_seen_us_ = sample.wall_us;
        last_new_ns_ = now_ns;
        ring.push({t_ns, sample.power_w});
    }
}

}  // namespace energy
