// Reads power, the energy counter and the state of some devices, and energy counters of the CPU, in the background, and
// has the marks resolved.
//
// The thread touches no Python and is woken by nothing but its deadlines and the three requests below. Its errors go
// into a mailbox, its losses are counted. All methods may be called from any thread, except that one thread at a time
// drains the rings (power() to activity()) of a device and cpu() of a counter. In a forked child every call does
// nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu_lane.hpp"
#include "device.hpp"
#include "marks.hpp"

namespace energy {

struct SamplerOptions {
    int64_t drain_period_ns = 1'000'000'000;
    int64_t counter_period_ns = 10'000'000'000;
    size_t ring_capacity = 16384;
    bool activity = false;
};

struct SamplerStats {
    double thread_cpu_s = 0;   // CPU time of the thread, or of the calls of tick()
    double driver_call_s = 0;  // spent inside NVML, by the sampler's clock
    uint64_t drains = 0, counter_reads = 0, dropped = 0, late_ticks = 0, lost_samples = 0;
};

using CpuCounters = std::vector<std::shared_ptr<RaplCounter>>;

class SamplerCore;

class Sampler {
  public:
    // Without devices `nvml` may be null. Counters of the CPU are read at the start, with every drain and by
    // read_counter().
    Sampler(std::shared_ptr<const Nvml> nvml, std::vector<Target> targets, std::shared_ptr<const Clock> clock,
            std::shared_ptr<MarkLog> marks, SamplerOptions options, CpuCounters cpu = {});
    ~Sampler();

    void start(bool threaded);     // throws NvmlError for an unknown device; asks for an edge search. Restartable.
    void stop();                   // idempotent; a thread hung in the driver is left behind after 1 s
    int64_t tick(int64_t now_ns);  // does what is due and returns the next deadline; only when not threaded
    void find_edge();              // per device about eight reads of its counter in 0.4 s, 40 at most
    bool edge_pending() const;
    void read_counter();         // per device: now and after its next refresh, or three where the phase is unknown
    bool reads_pending() const;  // requested readings, or a search
    void drain_now();
    void drain_every(int64_t period_ns);  // from now on
    // Waits for a drain not yet waited for and, after drain_now(), begun since; returns the number of drains so far.
    uint64_t wait_drained(std::chrono::nanoseconds timeout);
    std::vector<PowerSample> power(size_t device);
    std::vector<PowerSample> mean(size_t device);
    std::vector<CounterReading> counter(size_t device);
    std::vector<CpuReading> cpu(size_t counter);
    std::vector<StateReading> state(size_t device);
    std::vector<ActivityReading> activity(size_t device);
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
