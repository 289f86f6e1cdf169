#include "sampler.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <stdexcept>

#include "error.hpp"
#include "health.hpp"

namespace energy {
namespace {

using Steady = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

constexpr auto kStopPatience = std::chrono::seconds(2);
constexpr int64_t kResolvePeriodNs = 250'000'000;  // how late a mark's GPU time may be known
constexpr int64_t kHalfRefreshNs = 50'000'000;     // the energy counter refreshes every 100 ms
constexpr size_t kMostErrors = 256;
constexpr int kNoDevice = -1;

// Next deadline on the grid of `period`; deadlines that have passed are skipped, not made up for.
int64_t after(int64_t deadline_ns, int64_t period_ns, int64_t now_ns) {
    return deadline_ns + period_ns > now_ns ? deadline_ns + period_ns : now_ns + period_ns;
}

// New threads inherit the mask: the sampler must not be the one that handles the process's signals.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

  private:
    sigset_t before_;
};

template <class T>
std::vector<T> drain(Ring<T>& ring) {
    std::vector<T> items;
    items.reserve(ring.size());
    for (T item; ring.pop(item);) items.push_back(item);
    return items;
}

struct Device {
    Device(const std::string& id, const Nvml& nvml, const Clock& clock, size_t capacity)
        : uuid(id), power(nvml, clock, capacity), energy(nvml, clock, capacity) {}

    std::string uuid;
    PowerLane power;
    EnergyLane energy;
    Health power_health, energy_health;
    int64_t next_read_ns = 0;
};

}  // namespace

// All that the thread uses. tick() is called by one thread at a time: the sampler's own, or the caller's.
class Sampler::Core {
  public:
    Core(std::shared_ptr<const Nvml> nvml, std::vector<std::string> uuids, std::shared_ptr<const Clock> clock,
         std::shared_ptr<MarkLog> marks, SamplerOptions options)
        : nvml_(std::move(nvml)), clock_(std::move(clock)), marks_(std::move(marks)), options_(options) {
        for (const std::string& uuid : uuids) {
            devices_.push_back(std::make_unique<Device>(uuid, *nvml_, *clock_, options.ring_capacity));
        }
    }

    // One that works where this one has been abandoned; it takes over the errors.
    std::shared_ptr<Core> renewed() {
        std::vector<std::string> uuids;
        for (const auto& device : devices_) uuids.push_back(device->uuid);
        auto core = std::make_shared<Core>(nvml_, uuids, clock_, marks_, options_);
        core->errors_ = take_errors();
        return core;
    }

    void begin(bool threaded) {
        const int64_t now = clock_->now_ns();
        for (size_t i = 0; i < devices_.size(); ++i) {
            Device& device = *devices_[i];
            device.power_health = device.energy_health = Health();
            device.next_read_ns = now + options_.counter_period_ns;
            try {
                open(device);
            } catch (const NvmlError& error) {
                // An unknown device is the caller's mistake; one that is lost just now may come back.
                if (error.code() == abi::kNotFound || error.code() == abi::kInvalidArgument) throw;
                device.energy_health.failed(error, now);
                if (device.power_health.failed(error, now)) post(static_cast<int>(i), error.what());
            }
        }
        next_drain_ns_ = next_resolve_ns_ = now;
        const Lock lock(mutex_);
        stopping_.store(false);
        running_ = true;
        threaded_ = threaded;
        edge_requested_ = true;
        cpu_base_ns_ = cpu_ns_.load(std::memory_order_relaxed);
    }

    void run() noexcept {
        pthread_setname_np(pthread_self(), "energy-sampler");
        try {
            while (!stopping_.load()) {
                const int64_t next = work(clock_->now_ns());
                cpu_ns_.store(cpu_base_ns_ + thread_cpu_ns(), std::memory_order_relaxed);
                Lock lock(mutex_);
                const auto deadline = Steady::now() + std::chrono::nanoseconds(next - clock_->now_ns());
                changed_.wait_until(lock, deadline, [&] { return stopping_ || drain_requested_ || edge_requested_; });
            }
        } catch (const std::exception& error) {
            post(kNoDevice, std::string("the sampler's thread ended: ") + error.what());
        }
        finish();
    }

    int64_t tick(int64_t now_ns) {
        const int64_t before = thread_cpu_ns();
        const int64_t next = work(now_ns);
        cpu_ns_.fetch_add(thread_cpu_ns() - before, std::memory_order_relaxed);
        return next;
    }

    void request_stop() {
        const Lock lock(mutex_);
        stopping_.store(true);
        changed_.notify_all();
    }

    bool wait_finished(std::chrono::nanoseconds patience) {
        Lock lock(mutex_);
        return changed_.wait_until(lock, Steady::now() + patience, [&] { return !running_; });
    }

    void finish() {
        const Lock lock(mutex_);
        running_ = edge_requested_ = bursting_ = drain_requested_ = false;
        for (const auto& device : devices_) device->energy.end_burst();
        changed_.notify_all();
    }

    void abandon() {
        post(kNoDevice, "a driver call did not return within 2 s of stop(): its thread was left behind");
        abandoned = true;
        const Lock lock(mutex_);
        running_ = edge_requested_ = bursting_ = drain_requested_ = false;
    }

    void find_edge() {
        const Lock lock(mutex_);
        edge_requested_ = running_;
        changed_.notify_all();
    }

    bool edge_pending() const {
        const Lock lock(mutex_);
        return edge_requested_ || bursting_;
    }

    void drain_now() {
        const Lock lock(mutex_);
        drain_requested_ = running_;
        wanted_drain_ = drains_begun_ + 1;
        changed_.notify_all();
    }

    uint64_t wait_drained(std::chrono::nanoseconds timeout) {
        Lock lock(mutex_);
        const uint64_t target = std::max(seen_drain_ + 1, wanted_drain_);
        // Without a thread nobody would end the wait: the caller's own tick() does the work.
        changed_.wait_until(lock, Steady::now() + timeout,
                            [&] { return drains_done_ >= target || !running_ || stopping_ || !threaded_; });
        seen_drain_ = drains_done_;
        return drains_done_;
    }

    void post(int device, const std::string& message) {
        const Lock lock(mutex_);
        if (errors_.size() < kMostErrors) errors_.emplace_back(device, message);
    }

    std::vector<std::pair<int, std::string>> take_errors() {
        const Lock lock(mutex_);
        return std::exchange(errors_, {});
    }

    SamplerStats stats() const {
        SamplerStats stats;
        stats.thread_cpu_s = static_cast<double>(cpu_ns_.load(std::memory_order_relaxed)) * 1e-9;
        stats.late_ticks = late_ticks_.load(std::memory_order_relaxed);
        int64_t driver_ns = 0;
        for (const auto& device : devices_) {
            driver_ns += device->power.driver_ns + device->energy.driver_ns;
            stats.counter_reads += device->energy.reads;
            stats.dropped += device->power.ring.dropped() + device->energy.ring.dropped();
            stats.lost_samples += device->power.lost;
        }
        stats.driver_call_s = static_cast<double>(driver_ns) * 1e-9;
        const Lock lock(mutex_);
        stats.drains = drains_done_;
        return stats;
    }

    bool threaded() const {
        const Lock lock(mutex_);
        return running_ && threaded_;
    }

    bool running() const {
        const Lock lock(mutex_);
        return running_;
    }

    std::vector<std::unique_ptr<Device>>& devices() { return devices_; }

    bool abandoned = false;  // its thread hangs in the driver; guarded by Sampler::control_

  private:
    void open(Device& device) {
        const abi::Device handle = nvml_->device(device.uuid);
        device.power.open(handle);
        device.energy.open(handle);
    }

    int64_t work(int64_t now_ns) {
        bool drain_asked = false;
        {
            const Lock lock(mutex_);
            drain_asked = std::exchange(drain_requested_, false);
            if (std::exchange(edge_requested_, false)) {
                bursting_ = true;
                for (const auto& device : devices_) device->energy.begin_burst();
            }
        }
        do_due(now_ns, drain_asked);
        for (size_t i = 0; i < devices_.size(); ++i) {
            while (devices_[i]->energy.in_burst() && !stopping_.load(std::memory_order_relaxed)) {
                burst(i);
                do_due(clock_->now_ns(), take_drain_request());  // a long burst starves no drain
            }
        }
        const Lock lock(mutex_);
        bursting_ = false;
        changed_.notify_all();
        return next_deadline_ns();
    }

    bool take_drain_request() {
        const Lock lock(mutex_);
        return std::exchange(drain_requested_, false);
    }

    void do_due(int64_t now_ns, bool drain_asked) {
        if (marks_ && (drain_asked || now_ns >= next_resolve_ns_)) {
            marks_->resolve();
            next_resolve_ns_ = after(next_resolve_ns_, resolve_period_ns(), now_ns);
        }
        const bool drain_due = now_ns >= next_drain_ns_;
        if (drain_due) {
            if (now_ns - next_drain_ns_ > options_.drain_period_ns / 2) late_ticks_.fetch_add(1);
            next_drain_ns_ = after(next_drain_ns_, options_.drain_period_ns, now_ns);
        }
        if (drain_due || drain_asked) drain_all();
        for (size_t i = 0; i < devices_.size(); ++i) {
            Device& device = *devices_[i];
            if (device.energy_health.ended() || device.energy.in_burst() || now_ns < next_read_ns(device)) continue;
            device.next_read_ns = after(device.next_read_ns, options_.counter_period_ns, now_ns);
            attempt(i, device.energy_health, [&] { device.energy.read(); });
        }
    }

    void drain_all() {
        {
            const Lock lock(mutex_);
            ++drains_begun_;
        }
        for (size_t i = 0; i < devices_.size() && !stopping_.load(std::memory_order_relaxed); ++i) {
            Device& device = *devices_[i];
            attempt(i, device.power_health, [&] { device.power.drain(); });
        }
        const Lock lock(mutex_);
        drains_done_ = drains_begun_;
        changed_.notify_all();
    }

    void burst(size_t i) {
        Device& device = *devices_[i];
        // The burst is a reading, too. It ends where the counter refreshes; later readings keep clear of that instant.
        device.next_read_ns = clock_->now_ns() + options_.counter_period_ns - kHalfRefreshNs;
        if (!attempt(i, device.energy_health, [&] { device.energy.read_in_burst(); })) device.energy.end_burst();
    }

    template <class Call>
    bool attempt(size_t i, Health& health, Call call) {
        if (!health.may_try(clock_->now_ns())) return false;
        try {
            if (health.failing()) open(*devices_[i]);  // the handle may have died with the GPU
            call();
            health.worked();
            return true;
        } catch (const NvmlError& error) {
            if (health.failed(error, clock_->now_ns())) post(static_cast<int>(i), error.what());
            return false;
        }
    }

    static int64_t next_read_ns(const Device& device) {
        const Health& health = device.energy_health;
        return health.failing() ? health.retry_ns() : device.next_read_ns;
    }

    int64_t resolve_period_ns() const { return std::min(kResolvePeriodNs, options_.drain_period_ns); }

    int64_t next_deadline_ns() const {
        int64_t next = next_drain_ns_;
        if (marks_) next = std::min(next, next_resolve_ns_);
        for (const auto& device : devices_) {
            if (!device->energy_health.ended()) next = std::min(next, next_read_ns(*device));
        }
        return next;
    }

    const std::shared_ptr<const Nvml> nvml_;
    const std::shared_ptr<const Clock> clock_;
    const std::shared_ptr<MarkLog> marks_;
    const SamplerOptions options_;
    std::vector<std::unique_ptr<Device>> devices_;
    int64_t next_drain_ns_ = 0;  // these two belong to whoever ticks
    int64_t next_resolve_ns_ = 0;
    int64_t cpu_base_ns_ = 0;  // of earlier threads
    std::atomic<int64_t> cpu_ns_{0};
    std::atomic<uint64_t> late_ticks_{0};
    std::atomic<bool> stopping_{false};  // written under mutex_

    mutable std::mutex mutex_;  // guards all below; never held across a driver call
    std::condition_variable changed_;
    bool running_ = false, threaded_ = false;
    bool drain_requested_ = false, edge_requested_ = false, bursting_ = false;
    uint64_t drains_begun_ = 0, drains_done_ = 0, wanted_drain_ = 0, seen_drain_ = 0;
    std::vector<std::pair<int, std::string>> errors_;
};

Sampler::Sampler(std::shared_ptr<const Nvml> nvml, std::vector<std::string> uuids, std::shared_ptr<const Clock> clock,
                 std::shared_ptr<MarkLog> marks, SamplerOptions options)
    : core_(std::make_shared<Core>(std::move(nvml), std::move(uuids), std::move(clock), std::move(marks), options)) {}

Sampler::~Sampler() {
    if (origin_.here()) {
        stop();
        return;
    }
    // The thread is the parent's, and its mutexes may be held for ever: leak what cannot be taken apart here.
    new std::thread(std::move(thread_));
    new std::shared_ptr<Core>(std::move(core_));
}

void Sampler::start(bool threaded) {
    if (!origin_.here()) return;
    const std::lock_guard guard(control_);
    if (core_->abandoned) std::atomic_store(&core_, core_->renewed());
    if (core_->running()) return;
    core_->begin(threaded);
    if (!threaded) return;
    const SignalsBlocked blocked;
    try {
        thread_ = std::thread([core = core_] { core->run(); });
    } catch (...) {
        core_->finish();
        throw;
    }
}

void Sampler::stop() {
    if (!origin_.here()) return;
    const std::lock_guard guard(control_);
    if (core_->abandoned) return;
    core_->request_stop();
    if (!thread_.joinable()) {
        core_->finish();
    } else if (core_->wait_finished(kStopPatience)) {
        thread_.join();
    } else {
        thread_.detach();
        core_->abandon();
    }
}

std::shared_ptr<Sampler::Core> Sampler::core() const { return std::atomic_load(&core_); }

int64_t Sampler::tick(int64_t now_ns) {
    if (!origin_.here()) return INT64_MAX;
    const std::shared_ptr<Core> core = this->core();
    if (core->threaded()) throw std::logic_error("tick() is for a sampler started with threaded=False");
    return core->running() ? core->tick(now_ns) : INT64_MAX;
}

void Sampler::find_edge() {
    if (origin_.here()) core()->find_edge();
}

bool Sampler::edge_pending() const { return origin_.here() && core()->edge_pending(); }

void Sampler::drain_now() {
    if (origin_.here()) core()->drain_now();
}

uint64_t Sampler::wait_drained(std::chrono::nanoseconds timeout) {
    return origin_.here() ? core()->wait_drained(timeout) : 0;
}

size_t Sampler::devices() const { return core()->devices().size(); }

std::vector<PowerSample> Sampler::power(size_t device) {
    if (!origin_.here()) return {};
    const std::shared_ptr<Core> core = this->core();
    return drain(core->devices().at(device)->power.ring);
}

std::vector<CounterReading> Sampler::counter(size_t device) {
    if (!origin_.here()) return {};
    const std::shared_ptr<Core> core = this->core();
    return drain(core->devices().at(device)->energy.ring);
}

SamplerStats Sampler::stats() const { return origin_.here() ? core()->stats() : SamplerStats(); }

std::vector<std::pair<int, std::string>> Sampler::take_errors() {
    if (!origin_.here()) return {};
    return core()->take_errors();
}

}  // namespace energy
