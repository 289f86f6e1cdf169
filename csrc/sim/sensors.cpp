#include "sensors.hpp"

#include <algorithm>
#include <cmath>

#include "timeline.hpp"

namespace sim {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kSamplePeriodNs = 20 * kMs;
constexpr std::int64_t kDeadTimeNs = 5 * kMs;
constexpr double kLagNs = 12e6;
constexpr std::int64_t kMemoryNs = 120 * kMs;  // the low-pass has forgotten all but 2e-5 of what came before
constexpr std::int64_t kDeliveryNs = 100 * kMs;
constexpr double kNoise = 0.003;

// Stamps wobble around their 20 ms grid; a few come late, and the one after is still catching up. Chosen so that
// intervals have the recorded percentiles (1, 10, 90, 99 %: 9, 16, 24, 36 ms) and stamps never cross.
constexpr double kWobbleNs = 1.9e6;
constexpr double kMaxWobbleNs = 4.4e6;
constexpr double kLateProbability = 0.03;
constexpr double kMinLateNs = 12e6;
constexpr double kMaxLateNs = 18e6;
constexpr double kCatchUp = 0.4;

constexpr double kCounterMedianNs = 3e6;
constexpr double kCounterSpread = 0.72;  // of the logarithm: 99 % are below 16 ms
constexpr double kCounterMaxNs = 40e6;

double lateness_ns(const Dice& dice, std::int64_t number) {
    if (dice.uniform(Draw::kLate, number) >= kLateProbability) return 0.0;
    return kMinLateNs + (kMaxLateNs - kMinLateNs) * dice.uniform(Draw::kLateness, number);
}

std::int64_t phase_ns(const Device& device, std::int64_t which, std::int64_t period_ns) {
    return static_cast<std::int64_t>(device.dice.uniform(Draw::kPhase, which) * static_cast<double>(period_ns));
}

std::int64_t floor_to(std::int64_t t, std::int64_t period) {
    const std::int64_t rest = t % period;
    return t - (rest < 0 ? rest + period : rest);
}

double low_passed_w(const Device& device, std::int64_t stamp_ns) {
    const std::int64_t end_ns = stamp_ns - kDeadTimeNs;
    const auto weight = [&](std::int64_t t_ns) { return std::exp(static_cast<double>(t_ns - end_ns) / kLagNs); };
    double below = 0.0;  // everything before the first stretch counts as part of it
    double power_w = 0.0;
    for_each_level(device, end_ns - kMemoryNs, end_ns, [&](std::int64_t, std::int64_t until_ns, double level_w) {
        const double above = weight(until_ns);
        power_w += level_w * (above - below);
        below = above;
    });
    return power_w;
}

double base_j(const Device& device) { return 1e4 + 1e6 * device.dice.uniform(Draw::kBase, 0); }

// When the counter last began anew, if it ever did before `t_ns`.
const Fault* last_reset(const Device& device, std::int64_t t_ns) {
    const Fault* reset = nullptr;
    for (const Fault& fault : device.faults) {
        if (!fault.active || fault.what.kind != kCounterReset || fault.what.from_ns > t_ns) continue;
        if (reset == nullptr || fault.what.from_ns > reset->what.from_ns) reset = &fault;
    }
    return reset;
}

// By how much the counter jumped in a stretch of time.
double jumped_j(const Device& device, std::int64_t since_ns, std::int64_t until_ns) {
    double sum_j = 0.0;
    for (const Fault& fault : device.faults) {
        const bool jump = fault.active && fault.what.kind == kCounterJump;
        if (jump && since_ns <= fault.what.from_ns && fault.what.from_ns <= until_ns) sum_j += fault.what.amount;
    }
    return sum_j;
}

}  // namespace

std::int64_t sample_stamp_ns(const State& state, const Device& device, std::int64_t number) {
    const double wobble =
        std::clamp(kWobbleNs * device.dice.normal(Draw::kJitter, number), -kMaxWobbleNs, kMaxWobbleNs);
    const double late = std::max(lateness_ns(device.dice, number), kCatchUp * lateness_ns(device.dice, number - 1));
    return state.origin_ns + phase_ns(device, 1, kSamplePeriodNs) + number * kSamplePeriodNs +
           static_cast<std::int64_t>(wobble + late);
}

SampleRange visible_samples(const State& state, const Device& device, std::int64_t now_ns) {
    const std::int64_t until_ns = last_refresh_ns(state, device, now_ns) - kDeliveryNs;
    std::int64_t end = floor_to(until_ns - state.origin_ns, kSamplePeriodNs) / kSamplePeriodNs + 3;
    while (sample_stamp_ns(state, device, end - 1) > until_ns) --end;
    return {end - kSampleDepth, end};
}

PowerSample sample(const State& state, const Device& device, std::int64_t number) {
    const std::int64_t stamp_ns = sample_stamp_ns(state, device, number);
    const double noise = 1.0 + kNoise * device.dice.normal(Draw::kNoise, number);
    return {stamp_ns, std::max(low_passed_w(device, stamp_ns) * noise, 0.0)};
}

std::int64_t last_refresh_ns(const State& state, const Device& device, std::int64_t t_ns) {
    const std::int64_t phase = state.origin_ns + phase_ns(device, 0, kRefreshNs);
    return phase + floor_to(t_ns - phase, kRefreshNs);
}

double counter_j(const State& state, const Device& device, std::int64_t t_ns) {
    const std::int64_t refresh_ns = last_refresh_ns(state, device, t_ns);
    const Fault* reset = last_reset(device, refresh_ns);
    const double start_j = reset == nullptr ? -base_j(device) : energy_j(device, reset->what.from_ns);
    const std::int64_t since_ns = reset == nullptr ? INT64_MIN : reset->what.from_ns;
    return std::max(energy_j(device, refresh_ns) - start_j, 0.0) + jumped_j(device, since_ns, refresh_ns);
}

double mean_power_w(const State& state, const Device& device, std::int64_t t_ns, std::int64_t window_ns) {
    // Their refresh has a phase of its own, as on an H200.
    const auto period_ns = static_cast<std::int64_t>(state.config.profile.power_refresh_s * 1e9);
    const std::int64_t phase = state.origin_ns + phase_ns(device, 2, period_ns);
    const auto age_ns = static_cast<std::int64_t>(state.config.profile.power_age_s * 1e9);
    const std::int64_t end_ns = phase + floor_to(t_ns - phase, period_ns) - age_ns;
    return (energy_j(device, end_ns) - energy_j(device, end_ns - window_ns)) / (static_cast<double>(window_ns) * 1e-9);
}

double busy_share(const State& state, const Device& device, std::int64_t t_ns) {
    const std::int64_t end_ns = last_refresh_ns(state, device, t_ns);
    const double busy_w = state.config.profile.idle_w * 1.2;
    std::int64_t busy_ns = 0;
    for_each_level(device, end_ns - kRefreshNs, end_ns, [&](std::int64_t start, std::int64_t end, double power_w) {
        if (power_w > busy_w) busy_ns += end - start;
    });
    return static_cast<double>(busy_ns) / static_cast<double>(kRefreshNs);
}

std::int64_t counter_cost_ns(Device& device) {
    const double spread = std::exp(kCounterSpread * device.dice.normal(Draw::kCost, device.costs_drawn.fetch_add(1)));
    return static_cast<std::int64_t>(std::min(kCounterMedianNs * spread, kCounterMaxNs));
}

std::int64_t samples_cost_ns(const Device& device, std::int64_t now_ns) {
    const Work* work = work_at(device, now_ns);
    return work != nullptr && work->memory_share > 0.5F ? 1500'000 : 500'000;
}

}  // namespace sim
