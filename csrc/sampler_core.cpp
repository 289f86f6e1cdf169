#include "sampler_core.hpp"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "deadline.hpp"

namespace energy {
namespace {

using Steady = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

constexpr int64_t kResolvePeriodNs = 600'000'000;  // how late a mark's GPU time may be known
constexpr size_t kMostErrors = 256;
constexpr int kNoDevice = -1;

}  // namespace

SamplerCore::SamplerCore(std::shared_ptr<const Nvml> nvml, const std::vector<std::string>& uuids,
                         std::shared_ptr<const Clock> clock, std::shared_ptr<MarkLog> marks, SamplerOptions options)
    : nvml_(std::move(nvml)), clock_(std::move(clock)), marks_(std::move(marks)), options_(options) {
    for (const std::string& uuid : uuids) {
        devices_.push_back(
            std::make_unique<Device>(uuid, *nvml_, *clock_, options.counter_period_ns, options.ring_capacity));
    }
}

std::shared_ptr<SamplerCore> SamplerCore::renewed() {
    std::vector<std::string> uuids;
    for (const auto& device : devices_) uuids.push_back(device->uuid());
    auto core = std::make_shared<SamplerCore>(nvml_, uuids, clock_, marks_, options_);
    core->errors_ = take_errors();
    return core;
}

void SamplerCore::begin(bool threaded) {
    for (size_t i = 0; i < devices_.size(); ++i) post(static_cast<int>(i), devices_[i]->begin());
    next_drain_ns_ = next_resolve_ns_ = clock_->now_ns();
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
            const auto deadline = Steady::now() + std::chrono::nanoseconds(next - clock_->now_ns());
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
        driver_ns += device->power.driver_ns + device->energy.driver_ns;
        stats.counter_reads += device->energy.reads;
        stats.dropped += device->power.ring.dropped() + device->energy.ring.dropped();
        stats.lost_samples += device->power.lost;
    }
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
    for (const auto& device : devices_) next = std::min(next, device->next_read_ns());
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
    bool drain = false;
    {
        const Lock lock(mutex_);
        drain = std::exchange(drain_requested_, false);
    }
    if (marks_ && (drain || now_ns >= next_resolve_ns_)) {
        marks_->resolve();
        const int64_t period = std::min(kResolvePeriodNs, options_.drain_period_ns);
        next_resolve_ns_ = next_deadline(next_resolve_ns_, period, now_ns);
    }
    if (now_ns >= next_drain_ns_) {
        drain = true;
        if (now_ns - next_drain_ns_ > options_.drain_period_ns / 2) late_ticks_.fetch_add(1, std::memory_order_relaxed);
        next_drain_ns_ = next_deadline(next_drain_ns_, options_.drain_period_ns, now_ns);
    }
    if (drain) drain_all();
    for (size_t i = 0; i < devices_.size(); ++i) post(static_cast<int>(i), devices_[i]->read_if_due(now_ns));
}

void SamplerCore::drain_all() {
    {
        const Lock lock(mutex_);
        ++drains_begun_;
    }
    for (size_t i = 0; i < devices_.size() && !stopping_.load(std::memory_order_relaxed); ++i) {
        post(static_cast<int>(i), devices_[i]->drain());
    }
    const Lock lock(mutex_);
    drains_done_ = drains_begun_;
    changed_.notify_all();
}

void SamplerCore::post(int device, const Device::News& news) {
    if (!news) return;
    const Lock lock(mutex_);
    if (errors_.size() < kMostErrors) errors_.emplace_back(device, *news);
}

}  // namespace energy
