// What a reader sees of the power: the sensors of an H200 (driver 580), as measured. The caller holds the lock.
#pragma once

#include <cstdint>

#include "state.hpp"

namespace sim {

constexpr std::int64_t kSampleDepth = 120;
constexpr std::int64_t kRefreshNs = 100'000'000;

struct PowerSample {
    std::int64_t t_ns;
    double power_w;
};

// The samples a reader finds in the driver's buffer at `now_ns`: numbers first <= i < end.
struct SampleRange {
    std::int64_t first;
    std::int64_t end;
};
SampleRange visible_samples(const State& state, const Device& device, std::int64_t now_ns);

std::int64_t sample_stamp_ns(const State& state, const Device& device, std::int64_t number);

// The power through the sensor's dead time and low-pass, at the sample's stamp, with its noise.
PowerSample sample(const State& state, const Device& device, std::int64_t number);

// When the slow readings (counter, averages, clocks) last changed.
std::int64_t last_refresh_ns(const State& state, const Device& device, std::int64_t t_ns);

// The energy counter as it stands at `t_ns`, in joules since the driver was loaded or the counter was reset.
double counter_j(const State& state, const Device& device, std::int64_t t_ns);

// Mean power over the last `window_ns` before the last refresh of the power readings.
double mean_power_w(const State& state, const Device& device, std::int64_t t_ns, std::int64_t window_ns);

// Share of the last refresh period in which the device did anything.
double busy_share(const State& state, const Device& device, std::int64_t t_ns);

// How long the next call takes.
std::int64_t counter_cost_ns(Device& device);
std::int64_t samples_cost_ns(const Device& device, std::int64_t now_ns);

}  // namespace sim
