#include "device.hpp"

#include <algorithm>

#include "deadline.hpp"

namespace energy {
namespace {

// Where the phase of the refresh is not known: the last comes after the next refresh for certain, and one is far from
// any.
constexpr int kRequestedReadings = 3;
constexpr int64_t kRequestedPeriodNs = 55'000'000;
// A refresh drifts by 7e-6 at most (H200): by less than a tenth of its period in this time.
constexpr int64_t kPhaseKeptNs = 600'000'000'000;
constexpr const char* kShutDown = "NVML was shut down by other code in this process; it was opened again";

}  // namespace

Device::Device(const std::string& uuid, const Nvml& nvml, const Clock& clock, int64_t counter_period_ns,
               size_t capacity)
    : power(nvml, clock, capacity),
      energy(nvml, clock, capacity),
      uuid_(uuid),
      nvml_(nvml),
      clock_(clock),
      counter_period_ns_(counter_period_ns) {}

Device::News Device::begin() {
    const int64_t now = clock_.now_ns();
    power_health_ = energy_health_ = Health();
    next_periodic_ns_ = now + counter_period_ns_;
    end_requests();
    try {
        open();
        return std::nullopt;
    } catch (const NvmlError& error) {
        if (error.code() == abi::kNotFound || error.code() == abi::kInvalidArgument) throw;
        energy_health_.failed(error, now);
        return power_health_.failed(error, now) ? News(error.what()) : std::nullopt;
    }
}

Device::News Device::drain() {
    return attempt(power_health_, [this] { power.drain(); });
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
    if (readings_pending()) next = std::min(next, next_requested_ns_);
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
    if (search_ || !edge_ns_ || since_edge > kPhaseKeptNs) {
        requests_left_ = kRequestedReadings;
        next_requested_ns_ = now_ns;
    } else {  // half a period after the next refresh
        requests_left_ = 1;
        next_requested_ns_ = edge_ns_ + (since_edge / kRefreshNs + 1) * kRefreshNs + kRefreshNs / 2;
    }
}

void Device::end_requests() noexcept {
    requests_left_ = 0;
    search_.reset();
}

// One read serves all that it comes in time for.
void Device::read(int64_t now_ns) {
    const bool for_search = search_ && now_ns >= search_->next_ns();
    const bool requested = readings_pending() && now_ns >= next_requested_ns_;
    if (now_ns >= next_periodic_ns_) next_periodic_ns_ = next_deadline(next_periodic_ns_, counter_period_ns_, now_ns);
    const CounterReading reading = energy.read();
    if (requested) {
        --requests_left_;
        next_requested_ns_ += kRequestedPeriodNs;
    }
    if (requested || !for_search || search_->fresh()) energy.ring.push(reading);
    if (for_search) advance_search(reading);
}

void Device::advance_search(const CounterReading& reading) {
    search_->feed(reading);
    if (!search_->done()) return;
    if (const auto& edge = search_->edge()) {
        energy.ring.push(*edge);
        // The search is a reading, too. Later ones keep half a period away from the refresh.
        edge_ns_ = (edge->before_ns + edge->after_ns) / 2;
        next_periodic_ns_ = edge_ns_ - kRefreshNs / 2 + counter_period_ns_;
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
    const abi::Device handle = nvml_.device(uuid_);
    power.open(handle);
    energy.open(handle);
    edge_ns_ = 0;  // a GPU that was reset may have another phase
}

}  // namespace energy
