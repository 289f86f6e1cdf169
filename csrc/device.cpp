#include "device.hpp"

#include <algorithm>

#include "deadline.hpp"

namespace energy {
namespace {

// Between readings where the phase of the refresh is not known: the last of three comes after the next refresh for
// certain, and one is far from any.
constexpr int64_t kSpreadNs = 55'000'000;
constexpr int64_t kFirstPeriodNs = 10'000'000'000;
// A read burns 3 ms or more of CPU in the driver: one in 8000 of them is what periodic reads may take, 0.0125 % of a
// core.
constexpr int64_t kReadsShare = 8000;
constexpr int64_t kLongestPeriodNs = 30'000'000'000;
constexpr int64_t kRemembered = 8;  // reads that the mean is of
// A refresh drifts by 7e-6 at most (H200): by less than a tenth of its period in this time.
constexpr int64_t kPhaseKeptNs = 600'000'000'000;
// A reading a second takes less room than fifty samples.
constexpr size_t kSamplesPerReading = 32;
constexpr const char* kShutDown = "NVML was shut down by other code in this process; it was opened again";

int64_t next_poll_of(const PowerLane& lane, const Health& health) noexcept {
    const int64_t next = lane.next_poll_ns();
    if (next == INT64_MAX || health.ended()) return INT64_MAX;
    return health.failing() ? health.retry_ns() : next;
}

}  // namespace

Device::Device(const Target& target, const Nvml& nvml, const Clock& clock, int64_t counter_period_ns, size_t capacity,
               bool activity)
    : power(PowerLane::of(target.source, nvml, clock, capacity)),
      mean(PowerLane::of(target.mean, nvml, clock, capacity)),
      energy(nvml, clock, capacity),
      state(nvml, clock, capacity / kSamplesPerReading, activity),
      activity(nvml, clock, capacity / kSamplesPerReading),
      target_(target),
      nvml_(nvml),
      clock_(clock),
      counter_period_ns_(counter_period_ns),
      wants_activity_(activity) {}

Device::News Device::begin() {
    const int64_t now = clock_.now_ns();
    power_health_ = mean_health_ = energy_health_ = state_health_ = activity_health_ = Health();
    state.forget();
    next_periodic_ns_ = now + counter_period_ns_;
    end_requests();
    try {
        open();
        return std::nullopt;
    } catch (const NvmlError& error) {
        if (error.code() == abi::kNotFound || error.code() == abi::kInvalidArgument) throw;
        for (Health* health : {&mean_health_, &energy_health_, &state_health_, &activity_health_}) {
            health->failed(error, now);
        }
        return power_health_.failed(error, now) ? News(error.what()) : std::nullopt;
    }
}

Device::News Device::drain() {
    if (power->next_poll_ns() != INT64_MAX) return std::nullopt;
    return attempt(power_health_, [this] { power->drain(); });
}

Device::News Device::poll_if_due(int64_t now_ns) {
    if (now_ns < next_poll_ns()) return std::nullopt;
    const bool mean_first = next_poll_of(*mean, mean_health_) < next_poll_of(*power, power_health_);
    if (mean_first) return attempt(mean_health_, [this] { mean->poll(); });
    return attempt(power_health_, [this] { power->poll(); });
}

int64_t Device::next_poll_ns() const noexcept {
    return std::min(next_poll_of(*power, power_health_), next_poll_of(*mean, mean_health_));
}

Device::News Device::read_state() {
    if (silent()) return std::nullopt;
    return attempt(state_health_, [this] { state.drain(); });
}

Device::News Device::read_activity() {
    if (!wants_activity_ || silent()) return std::nullopt;
    return attempt(activity_health_, [this] { activity.drain(); });
}

Device::News Device::read_if_due(int64_t now_ns) {
    if (now_ns < next_read_ns()) return std::nullopt;
    News news = attempt(energy_health_, [this, now_ns] { read(now_ns); });
    if (energy_health_.failing()) end_requests();
    return news;
}

int64_t Device::next_read_ns() const noexcept {
    if (energy_health_.ended()) return INT64_MAX;
    if (energy_health_.failing()) return energy_health_.retry_ns();
    int64_t next = next_periodic_ns_;
    if (readings_pending()) next = std::min(next, requested_ns_.front());
    if (search_) next = std::min(next, search_->next_ns());
    return next;
}

void Device::find_edge() {
    if (!search_ && energy_health_.may_try(clock_.now_ns())) search_.emplace();
}

void Device::request_readings(int64_t now_ns) {
    if (energy_health_.failing()) {  // whoever asks cannot wait: one more try for what can be had
        energy_health_.hurry();
        power_health_.hurry();
        return;
    }
    if (energy_health_.ended()) return;
    const int64_t since_edge = now_ns - edge_ns_;
    if (search_ || edge_ns_ == 0 || since_edge > kPhaseKeptNs) {
        requested_ns_ = {now_ns, now_ns + kSpreadNs, now_ns + 2 * kSpreadNs};
        return;
    }
    // One shows the refresh before, the other, half a period after it, the next: what was drawn between them is known.
    requested_ns_ = {now_ns, edge_ns_ + (since_edge / kRefreshNs + 1) * kRefreshNs + kRefreshNs / 2};
}

void Device::end_requests() noexcept {
    requested_ns_.clear();
    search_.reset();
}

// One read serves all that it comes in time for.
void Device::read(int64_t now_ns) {
    const bool for_search = search_ && now_ns >= search_->next_ns();
    const bool requested = readings_pending() && now_ns >= requested_ns_.front();
    if (now_ns >= next_periodic_ns_) next_periodic_ns_ = next_deadline(next_periodic_ns_, counter_period_ns(), now_ns);
    const CounterReading reading = energy.read();
    took_ns_ += (reading.after_ns - reading.before_ns - took_ns_) / (took_ns_ == 0 ? 1 : kRemembered);
    if (requested) requested_ns_.erase(requested_ns_.begin());
    energy.ring.push(reading);
    if (for_search) advance_search(reading);
}

int64_t Device::counter_period_ns() const noexcept {
    if (target_.source == PowerSource::kNone) return counter_period_ns_;  // the counter is all there is
    const int64_t affordable = std::min(kReadsShare * took_ns_, kLongestPeriodNs);
    return (std::max(counter_period_ns_, affordable) + kRefreshNs - 1) / kRefreshNs * kRefreshNs;
}

void Device::advance_search(const CounterReading& reading) {
    search_->feed(reading);
    if (!search_->done()) return;
    if (const auto& edge = search_->edge()) {
        energy.ring.push(*edge);
        // The search is a reading, too. Later ones keep half a period away from the refresh; the first comes soon, so
        // that something is settled early.
        const int64_t wait_ns = edge_ns_ == 0 ? std::min(counter_period_ns(), kFirstPeriodNs) : counter_period_ns();
        edge_ns_ = (edge->before_ns + edge->after_ns) / 2;
        next_periodic_ns_ = edge_ns_ - kRefreshNs / 2 + wait_ns;
    }
    search_.reset();
}

template <class Call>
Device::News Device::attempt(Health& health, Call call) {
    if (!health.may_try(clock_.now_ns())) return std::nullopt;
    News news;
    try {
        try {
            if (health.failing()) open();  // the handle may have died with the GPU
            call();
        } catch (const NvmlError& error) {
            if (error.code() != abi::kUninitialized) throw;
            nvml_.reopen();
            open();
            news = kShutDown;
            call();
        }
        health.worked();
    } catch (const NvmlError& error) {
        if (health.failed(error, clock_.now_ns())) news = error.what();
    }
    return news;
}

void Device::open() {
    const abi::Device handle = nvml_.device(target_.uuid);
    power->open(handle);
    mean->open(handle);
    energy.open(handle);
    state.open(handle);
    activity.open(handle);
    edge_ns_ = 0;  // a GPU that was reset may have another phase
}

}  // namespace energy
