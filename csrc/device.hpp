// One device: its two lanes, when each is due, and what becomes of their errors. An error is returned when it is news.
// Driven by one thread at a time; the lanes' rings and counts are for others, too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "edge_search.hpp"
#include "energy_lane.hpp"
#include "health.hpp"
#include "power_lane.hpp"

namespace energy {

class Device {
  public:
    using News = std::optional<std::string>;

    Device(const std::string& uuid, const Nvml& nvml, const Clock& clock, int64_t counter_period_ns, size_t capacity);

    const std::string& uuid() const noexcept { return uuid_; }

    // Throws NvmlError when there is no such device; one that is lost just now may come back, and is tried again.
    News begin();
    News drain();
    News read_if_due(int64_t now_ns);       // once at most
    int64_t next_read_ns() const noexcept;  // INT64_MAX when the counter will never be read again

    // These two ask for reads of the counter; an error ends them. One that is failing is at most tried once more.
    void find_edge();  // joins a search that is under way
    void request_readings(int64_t now_ns);
    void end_requests() noexcept;
    bool searching() const noexcept { return search_.has_value(); }
    bool readings_pending() const noexcept { return requests_left_ > 0; }

    PowerLane power;
    EnergyLane energy;

  private:
    template <class Call>
    News attempt(Health& health, Call call);
    void open();
    void read(int64_t now_ns);
    void advance_search(const CounterReading& reading);

    const std::string uuid_;
    const Nvml& nvml_;
    const Clock& clock_;
    const int64_t counter_period_ns_;
    Health power_health_, energy_health_;
    int64_t next_periodic_ns_ = 0;
    int64_t next_requested_ns_ = 0;
    int64_t edge_ns_ = 0;  // when a refresh of the counter was last seen; 0: never
    int requests_left_ = 0;
    std::optional<EdgeSearch> search_;
};

}  // namespace energy
