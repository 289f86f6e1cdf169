#include "sampler_core.hpp"

#include <pthread.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "deadline.hpp"
#include "events.hpp"

namespace energy {
namespace {

using Steady = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

constexpr int64_t kSlowPeriodNs = StateLane::kPeriodNs;  // of state and activity
// Marks are resolved with each drain, and in between if there are many: their events must come back sooner.
constexpr int64_t kLookForMarksNs = 600'000'000;
constexpr int64_t kBusyLookForMarksNs = 150'000'000;
constexpr uint64_t kManyMarks = EventPool::kReserve;
constexpr size_t kMostErrors = 256;
constexpr int kNoDevice = -1;

}  // namespace

SamplerCore::SamplerCore(std::shared_ptr<const Nvml> nvml, const std::vector<Target>& targets,
                         std::shared_ptr<const Clock> clock, std::shared_ptr<MarkLog> marks, SamplerOptions options,
                         CpuCounters cpu)
    : nvml_(std::move(nvml)),
      clock_(std::move(clock)),
      marks_(std::move(marks)),
      options_(options),
      drain_period_ns_(options.drain_period_ns) {
    if (!nvml_ && !targets.empty()) throw std::invalid_argument("devices need an NVML library");
    for (const Target& target : targets) {
        devices_.push_back(std::make_unique<Device>(target, *nvml_, *clock_, options.counter_period_ns,
                                                    options.ring_capacity, options.activity));
    }
    for (auto& counter : cpu) cpu_.push_back(std::make_unique<CpuLane>(std::move(counter), *clock_));
}

std::shared_ptr<SamplerCore> SamplerCore::renewed() {
    std::vector<Target> targets;
    for (const auto& device : devices_) targets.push_back(device->target());
    CpuCounters cpu;
    for (const auto& lane : cpu_) cpu.push_back(lane->counter());
    auto core = std::make_shared<SamplerCore>(nvml_, targets, clock_, marks_, options_, std::move(cpu));
    core->errors_ = take_errors();
    return core;
}

void SamplerCore::begin(bool threaded) {
    for (size_t i = 0; i < devices_.size(); ++i) post(static_cast<int>(i), devices_[i]->begin());
    read_cpu();
    next_drain_ns_ = next_resolve_ns_ = next_slow_ns_ = clock_->now_ns();
    cpu_base_ns_ = cpu_ns_.load(std::memory_order_relaxed);
    const Lock lock(mutex_);
    stopping_.store(false);
    running_ = true;
    threaded_ = threaded;
    edge_requested_ = true;
}

void SamplerCore::run() noexcept {
    pthread_setname_np(pthread_self(), "energy-sampler");
    try {
        while (!stopping_.load()) {
            const int64_t next = work(clock_->now_ns());
            cpu_ns_.store(cpu_base_ns_ + thread_cpu_ns(), std::memory_order_relaxed);
            Lock lock(mutex_);
            const int64_t now = clock_->now_ns();
            const auto deadline = Steady::now() + std::chrono::nanoseconds(std::max(next, now) - now);
            changed_.wait_until(lock, deadline,
                                [&] { return stopping_ || drain_requested_ || edge_requested_ || reads_requested_; });
        }
    } catch (const std::exception& error) {
        post(kNoDevice, std::string("the sampler's thread ended: ") + error.what());
    }
    finish();
}

int64_t SamplerCore::tick(int64_t now_ns) {
    const int64_t before = thread_cpu_ns();
    const int64_t next = work(now_ns);
    cpu_ns_.fetch_add(thread_cpu_ns() - before, std::memory_order_relaxed);
    return next;
}

void SamplerCore::request_stop() {
    const Lock lock(mutex_);
    stopping_.store(true);
    changed_.notify_all();
}

bool SamplerCore::wait_finished(std::chrono::nanoseconds patience) {
    Lock lock(mutex_);
    return changed_.wait_until(lock, Steady::now() + patience, [&] { return !running_; });
}

void SamplerCore::finish() {
    for (const auto& device : devices_) device->end_requests();
    const Lock lock(mutex_);
    running_ = drain_requested_ = edge_requested_ = reads_requested_ = searching_ = reading_ = false;
    changed_.notify_all();
}

void SamplerCore::abandon() {
    post(kNoDevice, "a driver call did not return within 1 s of stop(): its thread was left behind");
    const Lock lock(mutex_);
    abandoned_ = true;
    running_ = drain_requested_ = edge_requested_ = reads_requested_ = searching_ = reading_ = false;
    changed_.notify_all();
}

void SamplerCore::find_edge() {
    const Lock lock(mutex_);
    edge_requested_ = running_;
    changed_.notify_all();
}

bool SamplerCore::edge_pending() const {
    const Lock lock(mutex_);
    return edge_requested_ || searching_;
}

void SamplerCore::read_counter() {
    const Lock lock(mutex_);
    reads_requested_ = running_;
    changed_.notify_all();
}

bool SamplerCore::reads_pending() const {
    const Lock lock(mutex_);
    return reads_requested_ || reading_ || edge_requested_ || searching_;
}

void SamplerCore::drain_now() {
    const Lock lock(mutex_);
    drain_requested_ = running_;
    wanted_drain_ = drains_begun_ + 1;
    changed_.notify_all();
}

void SamplerCore::drain_every(int64_t period_ns) {
    drain_period_ns_.store(period_ns, std::memory_order_relaxed);
    drain_now();  // the thread may have gone to sleep for longer
}

uint64_t SamplerCore::wait_drained(std::chrono::nanoseconds timeout) {
    Lock lock(mutex_);
    const uint64_t target = std::max(seen_drain_ + 1, wanted_drain_);
    // Without a thread nobody would end the wait: the caller's own tick() does the work.
    changed_.wait_until(lock, Steady::now() + timeout,
                        [&] { return drains_done_ >= target || !running_ || stopping_ || !threaded_; });
    seen_drain_ = drains_done_;
    return drains_done_;
}

std::vector<std::pair<int, std::string>> SamplerCore::take_errors() {
    const Lock lock(mutex_);
    return std::exchange(errors_, {});
}

SamplerStats SamplerCore::stats() const {
    SamplerStats stats;
    int64_t driver_ns = 0;
    for (const auto& device : devices_) {
        driver_ns += device->power->driver_ns + device->energy.driver_ns + device->state.driver_ns;
        driver_ns += device->activity.driver_ns + device->mean->driver_ns;
        stats.counter_reads += device->energy.reads;
        stats.dropped += device->power->ring.dropped() + device->energy.ring.dropped();
        stats.dropped += device->state.ring.dropped() + device->activity.ring.dropped();
        stats.dropped += device->mean->ring.dropped();
        stats.lost_samples += device->power->lost;
    }
    for (const auto& lane : cpu_) stats.dropped += lane->ring.dropped();
    stats.driver_call_s = static_cast<double>(driver_ns) * 1e-9;
    stats.thread_cpu_s = static_cast<double>(cpu_ns_.load(std::memory_order_relaxed)) * 1e-9;
    stats.late_ticks = late_ticks_.load(std::memory_order_relaxed);
    const Lock lock(mutex_);
    stats.drains = drains_done_;
    return stats;
}

bool SamplerCore::threaded() const {
    const Lock lock(mutex_);
    return running_ && threaded_;
}

bool SamplerCore::running() const {
    const Lock lock(mutex_);
    return running_;
}

bool SamplerCore::abandoned() const {
    const Lock lock(mutex_);
    return abandoned_;
}

int64_t SamplerCore::work(int64_t now_ns) {
    take_requests(now_ns);
    do_due(now_ns);
    {
        const Lock lock(mutex_);
        note_pending();
    }
    int64_t next = marks_ ? std::min(next_drain_ns_, next_resolve_ns_) : next_drain_ns_;
    if (!devices_.empty()) next = std::min(next, next_slow_ns_);
    for (const auto& device : devices_) next = std::min({next, device->next_read_ns(), device->next_poll_ns()});
    return next;
}

void SamplerCore::take_requests(int64_t now_ns) {
    const Lock lock(mutex_);
    const bool find_edge = std::exchange(edge_requested_, false);
    const bool read = std::exchange(reads_requested_, false);
    for (const auto& device : devices_) {
        if (find_edge) device->find_edge();
        if (read) device->request_readings(now_ns);
    }
    cpu_requested_ = cpu_requested_ || read;
    note_pending();
}

void SamplerCore::note_pending() {
    searching_ = reading_ = false;
    for (const auto& device : devices_) {
        searching_ = searching_ || device->searching();
        reading_ = reading_ || device->readings_pending();
    }
}

void SamplerCore::do_due(int64_t now_ns) {
    bool requested = false;
    {
        const Lock lock(mutex_);
        requested = std::exchange(drain_requested_, false);
    }
    bool drain = requested;
    const int64_t period = drain_period_ns_.load(std::memory_order_relaxed);
    if (now_ns >= next_drain_ns_) {
        drain = true;
        if (now_ns - next_drain_ns_ > period / 2) late_ticks_.fetch_add(1, std::memory_order_relaxed);
        next_drain_ns_ = next_deadline(next_drain_ns_, period, now_ns);
    }
    next_drain_ns_ = std::min(next_drain_ns_, now_ns + period);  // the period may have become shorter
    if (marks_ && (drain || now_ns >= next_resolve_ns_)) resolve_marks(now_ns, drain);
    // Before the driver is called, which may hang.
    if (std::exchange(cpu_requested_, false) || drain) read_cpu();
    if (drain) drain_all();
    if (requested || now_ns >= next_slow_ns_) {
        read_slow_lanes();
        next_slow_ns_ = next_deadline(next_slow_ns_, kSlowPeriodNs, now_ns);
    }
    if (drain) announce_drain();  // last: who waits for it then finds all that was read
    for (size_t i = 0; i < devices_.size(); ++i) {
        post(static_cast<int>(i), devices_[i]->poll_if_due(now_ns));
        post(static_cast<int>(i), devices_[i]->read_if_due(now_ns));
    }
}

void SamplerCore::resolve_marks(int64_t now_ns, bool drain) {
    const MarkStats made = marks_->stats();
    const bool many = made.marks - resolved_.marks > kManyMarks;
    const bool first = resolved_.events == 0 && made.events > 0;  // only now does the pool grow to its size
    if (drain || many || first) {
        marks_->resolve();
        resolved_ = made;
    }
    next_resolve_ns_ = now_ns + (many ? kBusyLookForMarksNs : kLookForMarksNs);
}

void SamplerCore::drain_all() {
    {
        const Lock lock(mutex_);
        ++drains_begun_;
    }
    for (size_t i = 0; i < devices_.size() && !stopping_.load(std::memory_order_relaxed); ++i) {
        post(static_cast<int>(i), devices_[i]->drain());
    }
}

void SamplerCore::announce_drain() {
    const Lock lock(mutex_);
    drains_done_ = drains_begun_;
    changed_.notify_all();
}

void SamplerCore::read_slow_lanes() {
    for (size_t i = 0; i < devices_.size() && !stopping_.load(std::memory_order_relaxed); ++i) {
        post(static_cast<int>(i), devices_[i]->read_state());
        post(static_cast<int>(i), devices_[i]->read_activity());
    }
}

void SamplerCore::read_cpu() {
    for (const auto& lane : cpu_) post(kNoDevice, lane->read());
}

void SamplerCore::post(int device, const Device::News& news) {
    if (!news) return;
    const Lock lock(mutex_);
    if (errors_.size() < kMostErrors) errors_.emplace_back(device, *news);
}

}  // namespace energy
