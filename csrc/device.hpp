// One device: its lanes, when each is due, and what becomes of their errors. An error is returned when it is news.
// Driven by one thread at a time; the lanes' rings and counts are for others, too.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "activity_lane.hpp"
#include "edge_search.hpp"
#include "energy_lane.hpp"
#include "health.hpp"
#include "power_lane.hpp"
#include "state_lane.hpp"

namespace energy {

// A device by its UUID, and where its power samples are to come from; `mean` is a second reading, polled beside them.
struct Target {
    std::string uuid;
    PowerSource source = PowerSource::kSampleBuffer;
    PowerSource mean = PowerSource::kNone;
};

class Device {
  public:
    using News = std::optional<std::string>;

    // With `activity` it has the activity lane, too, and every field of the state is read once a second.
    Device(const Target& target, const Nvml& nvml, const Clock& clock, int64_t counter_period_ns, size_t capacity,
           bool activity);

    const Target& target() const noexcept { return target_; }

    // Throws NvmlError when there is no such device; one that is lost just now may come back, and is tried again.
    News begin();
    News drain();
    News poll_if_due(int64_t now_ns);       // one reading at most
    int64_t next_poll_ns() const noexcept;  // INT64_MAX where power is not polled
    News read_state();
    News read_activity();
    News read_if_due(int64_t now_ns);       // once at most
    int64_t next_read_ns() const noexcept;  // INT64_MAX when the counter will never be read again

    // These two ask for reads of the counter; an error ends them. One that is failing is at most tried once more.
    void find_edge();  // joins a search that is under way
    void request_readings(int64_t now_ns);
    void end_requests() noexcept;
    bool searching() const noexcept { return search_.has_value(); }
    bool readings_pending() const noexcept { return !requested_ns_.empty(); }

    const std::unique_ptr<PowerLane> power, mean;
    EnergyLane energy;
    StateLane state;
    ActivityLane activity;

  private:
    template <class Call>
    News attempt(Health& health, Call call);
    // Not worth asking about more: it does not even tell its power just now, and that has been said.
    bool silent() const noexcept { return power_health_.failing() && !power_health_.ended(); }
    void open();
    void read(int64_t now_ns);
    int64_t counter_period_ns() const noexcept;  // longer where reads are slow
    void advance_search(const CounterReading& reading);

    const Target target_;
    const Nvml& nvml_;
    const Clock& clock_;
    const int64_t counter_period_ns_;
    const bool wants_activity_;
    Health power_health_, mean_health_, energy_health_, state_health_, activity_health_;
    int64_t next_periodic_ns_ = 0;
    int64_t took_ns_ = 0;                // a read, lately
    int64_t edge_ns_ = 0;                // when a refresh of the counter was last seen; 0: never
    std::vector<int64_t> requested_ns_;  // when readings were asked for, in order
    std::optional<EdgeSearch> search_;
};

}  // namespace energy
