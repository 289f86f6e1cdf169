// Reads power samples and the energy counter of some devices in the background, and has the marks resolved.
//
// The thread touches no Python and is woken by nothing but its deadlines and the three requests below. Its errors go
// into a mailbox, its losses are counted. All methods may be called from any thread, except that one thread at a time
// drains power() and counter() of a device. In a forked child every call does nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "energy_lane.hpp"
#include "marks.hpp"
#include "power_lane.hpp"

namespace energy {

struct SamplerOptions {
    int64_t drain_period_ns = 1'000'000'000;
    int64_t counter_period_ns = 10'000'000'000;
    size_t ring_capacity = 16384;
};

struct SamplerStats {
    double thread_cpu_s = 0;   // CPU time of the thread, or of the calls of tick()
    double driver_call_s = 0;  // spent inside NVML, by the sampler's clock
    uint64_t drains = 0, counter_reads = 0, dropped = 0, late_ticks = 0, lost_samples = 0;
};

class SamplerCore;

class Sampler {
  public:
    Sampler(std::shared_ptr<const Nvml> nvml, std::vector<std::string> uuids, std::shared_ptr<const Clock> clock,
            std::shared_ptr<MarkLog> marks, SamplerOptions options);
    ~Sampler();

    void start(bool threaded);     // throws NvmlError for an unknown device; asks for an edge search. Restartable.
    void stop();                   // idempotent; a thread hung in the driver is left behind after 1 s
    int64_t tick(int64_t now_ns);  // does what is due and returns the next deadline; only when not threaded
    void find_edge();              // per device about eight reads of its counter in 0.4 s, 40 at most
    bool edge_pending() const;
    void read_counter();         // after its next refresh: a reading per device, or three where the phase is unknown
    bool reads_pending() const;  // requested readings, or a search
    void drain_now();
    // Waits for a drain not yet waited for and, after drain_now(), begun since; returns the number of drains so far.
    uint64_t wait_drained(std::chrono::nanoseconds timeout);
    std::vector<PowerSample> power(size_t device);
    std::vector<CounterReading> counter(size_t device);
    SamplerStats stats() const;
    std::vector<std::pair<int, std::string>> take_errors();  // device or -1, and what happened; each once

  private:
    std::shared_ptr<SamplerCore> core() const;
    std::shared_ptr<SamplerCore> core_;  // shared with the thread; replaced by start() alone
    std::mutex control_;                 // guards thread_, and start and stop against each other
    std::thread thread_;
    Origin origin_;
};

}  // namespace energy
