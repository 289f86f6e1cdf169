#include "roofline.hpp"

#include <algorithm>

namespace sim {
namespace {

constexpr double kClockStepMhz = 15.0;

// Dynamic power ~ f V^2, voltage linear in the clock above a floor. The two constants put the clock a matrix product
// reaches under a limit near that published for H100 (arXiv:2604.11391, figure 6b: 625 MHz at 200 W, 1132 at 300,
// 1501 at 400, 1731 at 500, 1889 at 600).
constexpr double kVoltageFloor = 0.62;
constexpr double kVoltageAtZero = 0.35;

double dynamic_power_share(double clock_share) {
    const double voltage = std::max(kVoltageFloor, kVoltageAtZero + (1.0 - kVoltageAtZero) * clock_share);
    return clock_share * voltage * voltage;
}

Cost at_clock(const EpSimProfile& profile, double ops, double bytes, double clock_mhz) {
    const double clock_share = clock_mhz / profile.max_clock_mhz;
    const double compute_s = ops / (profile.ops_per_s * clock_share);
    const double memory_s = bytes / profile.bytes_per_s;
    const double seconds = std::max(compute_s, memory_s);
    if (seconds <= 0.0) return {0.0, profile.idle_w, clock_mhz, 0.0, 0.0, 0.0};
    const double compute_w = profile.compute_w * dynamic_power_share(clock_share) * compute_s / seconds;
    const double memory_w = profile.memory_w * memory_s / seconds;
    return {seconds, profile.idle_w + compute_w + memory_w, clock_mhz, memory_s / seconds, compute_s / seconds, 1.0};
}

}  // namespace

Cost run(const EpSimProfile& profile, double ops, double bytes, double limit_w, double clock_mhz) {
    Cost cost = at_clock(profile, ops, bytes, clock_mhz);
    for (; cost.power_w > limit_w && clock_mhz > profile.min_clock_mhz;
         cost = at_clock(profile, ops, bytes, clock_mhz)) {
        clock_mhz = std::max(clock_mhz - kClockStepMhz, profile.min_clock_mhz);
    }
    if (cost.power_w > limit_w) {  // even the lowest clock draws too much: memory is throttled as well
        cost.seconds *= (cost.power_w - profile.idle_w) / std::max(limit_w - profile.idle_w, 1.0);
        cost.power_w = limit_w;
    }
    const double total_s = cost.seconds + profile.launch_s;
    if (total_s > 0.0) {
        cost.busy_share = cost.seconds / total_s;
        cost.power_w = profile.idle_w + (cost.power_w - profile.idle_w) * cost.busy_share;
        cost.seconds = total_s;
    }
    return cost;
}

}  // namespace sim
