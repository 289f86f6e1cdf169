// All that the sampler's thread uses, so that one which hangs in the driver keeps it alive.
//
// tick() and run() are for one thread at a time. Everything else is for any thread and waits for no driver call.
#pragma once

#include <atomic>
#include <condition_variable>

#include "sampler.hpp"

namespace energy {

class SamplerCore {
  public:
    SamplerCore(std::shared_ptr<const Nvml> nvml, const std::vector<Target>& targets,
                std::shared_ptr<const Clock> clock, std::shared_ptr<MarkLog> marks, SamplerOptions options,
                CpuCounters cpu);
    std::shared_ptr<SamplerCore> renewed();  // one that works, where this one is abandoned; takes over the errors

    void begin(bool threaded);
    void run() noexcept;  // until request_stop()
    int64_t tick(int64_t now_ns);
    void request_stop();
    bool wait_finished(std::chrono::nanoseconds patience);
    void finish();
    void abandon();  // its thread is left behind

    void find_edge();
    bool edge_pending() const;
    void read_counter();
    bool reads_pending() const;
    void drain_now();
    void drain_every(int64_t period_ns);
    uint64_t wait_drained(std::chrono::nanoseconds timeout);
    std::vector<std::pair<int, std::string>> take_errors();
    SamplerStats stats() const;
    bool threaded() const;
    bool running() const;
    bool abandoned() const;
    Device& device(size_t i) { return *devices_.at(i); }
    CpuLane& cpu(size_t i) { return *cpu_.at(i); }

  private:
    int64_t work(int64_t now_ns);
    void take_requests(int64_t now_ns);
    void note_pending();  // with mutex_ held
    void do_due(int64_t now_ns);
    void drain_all();
    void announce_drain();
    void resolve_marks(int64_t now_ns, bool drain);
    void read_slow_lanes();
    void read_cpu();
    void post(int device, const Device::News& news);

    const std::shared_ptr<const Nvml> nvml_;
    const std::shared_ptr<const Clock> clock_;
    const std::shared_ptr<MarkLog> marks_;
    const SamplerOptions options_;
    std::vector<std::unique_ptr<Device>> devices_;
    std::vector<std::unique_ptr<CpuLane>> cpu_;
    int64_t next_drain_ns_ = 0, next_resolve_ns_ = 0, next_slow_ns_ = 0;  // for whoever ticks
    MarkStats resolved_;                                                  // what had been made at the last resolution
    bool cpu_requested_ = false;                                          // for whoever ticks
    int64_t cpu_base_ns_ = 0;                                             // of earlier threads
    std::atomic<int64_t> cpu_ns_{0};
    std::atomic<uint64_t> late_ticks_{0};
    std::atomic<int64_t> drain_period_ns_;
    std::atomic<bool> stopping_{false};  // written under mutex_

    mutable std::mutex mutex_;  // guards all below; never held across a driver call
    std::condition_variable changed_;
    bool running_ = false, threaded_ = false, abandoned_ = false;
    bool drain_requested_ = false, edge_requested_ = false, reads_requested_ = false;
    bool searching_ = false, reading_ = false;  // on some device
    uint64_t drains_begun_ = 0, drains_done_ = 0, wanted_drain_ = 0, seen_drain_ = 0;
    std::vector<std::pair<int, std::string>> errors_;
};

}  // namespace energy
