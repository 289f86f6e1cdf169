#include "buffer_lane.hpp"

#include <cstdlib>
#include <utility>
#include <vector>

namespace energy {
namespace {

// NTP slews by at most 0.5 ms a second; anything beyond this between two drains is a step.
constexpr int64_t kStepNs = 5'000'000;
// Stamps from before and after a step as long as this cannot be confused. After a shorter one the two are told apart by
// the place of the step in their sequence, once all stamped before it were delivered.
constexpr int64_t kFarNs = 60'000'000'000;
// Intervals between stamps jitter by 15 ms: a step forward that is no longer than this does not show in them.
constexpr int64_t kBlurNs = 60'000'000;
constexpr int64_t kDeepNs = 2'500'000'000;  // the driver's buffer holds no more
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

// Where in a batch the stamps of the stepped clock begin; 0 where that cannot be seen. A clock that was set back shows
// for as long as the driver holds stamps from before.
size_t first_stepped(const std::vector<StampedPower>& batch, int64_t step_ns, int64_t period_ns) {
    size_t first = 0;
    for (size_t i = 1; i < batch.size(); ++i) {
        const int64_t apart_ns = (batch[i].wall_us - batch[i - 1].wall_us) * 1000;
        const bool leap = step_ns > kBlurNs && std::abs(apart_ns - period_ns - step_ns) < step_ns / 2;
        if (apart_ns < 0 || leap) first = i;
    }
    return first;
}

}  // namespace

void BufferLane::open(abi::Device device) noexcept {
    device_ = device;
    last_seen_us_ = 0;
    opened_ = true;
}

void BufferLane::drain() {
    const int64_t offset = wall_offset_ns(clock_);
    const int64_t step = offset - wall_offset_ns_;
    const bool stepped = std::abs(step) > kStepNs;
    if (stepped || clock_.now_ns() - last_new_ns_ > kStarvedNs) last_seen_us_ = 0;
    if (stepped && std::abs(step) <= kFarNs) {
        wall_offset_ns_ = offset;
        return note_step(step);
    }

    std::vector<StampedPower> batch;
    const int64_t before = clock_.now_ns();
    nvml_.power_samples(device_, last_seen_us_, batch);
    const int64_t after = clock_.now_ns();
    driver_ns.fetch_add(after - before, std::memory_order_relaxed);

    const int64_t earlier_offset = std::exchange(wall_offset_ns_, wall_offset_ns(clock_));
    if (std::abs(wall_offset_ns_ - offset) > kStepNs) {
        last_seen_us_ = 0;  // stepped during the call: nobody knows which stamps are of which clock; ask again
        return note_step(wall_offset_ns_ - offset);
    }
    const bool far = std::abs(offset - earlier_offset) > kFarNs;
    if (after < near_until_ns_ && last_seen_us_ == 0) {
        keep_around_step(batch, offset, after);
    } else {
        batch.erase(batch.begin(),
                    batch.begin() + static_cast<std::ptrdiff_t>(far ? 0 : first_stepped(batch, 0, period_ns_)));
        keep(batch, {offset, far ? earlier_offset : offset}, after);
    }
}

void BufferLane::note_step(int64_t step_ns) {
    const int64_t now = clock_.now_ns();
    near_step_ns_ = now < near_until_ns_ ? 0 : step_ns;  // of two at once neither is told
    near_until_ns_ = now + kDeepNs;
}

// After a short step of the wall clock. Where its place is not seen, nothing is kept until the driver has forgotten all
// that it stamped before.
void BufferLane::keep_around_step(const std::vector<StampedPower>& batch, int64_t offset_ns, int64_t now_ns) {
    const size_t first = near_step_ns_ == 0 ? 0 : first_stepped(batch, near_step_ns_, period_ns_);
    if (first == 0) return;
    const auto middle = batch.begin() + static_cast<std::ptrdiff_t>(first);
    const int64_t before_ns = offset_ns - near_step_ns_;
    keep({batch.begin(), middle}, {before_ns, before_ns}, now_ns);
    keep({middle, batch.end()}, {offset_ns, offset_ns}, now_ns);
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
