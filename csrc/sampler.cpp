#include "sampler.hpp"

#include <signal.h>

#include <stdexcept>

#include "sampler_core.hpp"

namespace energy {
namespace {

constexpr auto kStopPatience = std::chrono::seconds(1);

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

}  // namespace

Sampler::Sampler(std::shared_ptr<const Nvml> nvml, std::vector<Target> targets, std::shared_ptr<const Clock> clock,
                 std::shared_ptr<MarkLog> marks, SamplerOptions options, CpuCounters cpu)
    : core_(std::make_shared<SamplerCore>(std::move(nvml), std::move(targets), std::move(clock), std::move(marks),
                                          options, std::move(cpu))) {}

Sampler::~Sampler() {
    if (origin_.here()) {
        stop();
        return;
    }
    // The thread is the parent's, and its mutexes may be held for ever: leak what cannot be taken apart here.
    new std::thread(std::move(thread_));
    new std::shared_ptr<SamplerCore>(std::move(core_));
}

void Sampler::start(bool threaded) {
    if (!origin_.here()) return;
    const std::lock_guard guard(control_);
    if (core_->abandoned()) std::atomic_store(&core_, core_->renewed());
    if (core_->running()) return;
    if (thread_.joinable()) thread_.join();  // an error has ended it
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
    if (core_->abandoned()) return;
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

std::shared_ptr<SamplerCore> Sampler::core() const { return std::atomic_load(&core_); }

int64_t Sampler::tick(int64_t now_ns) {
    if (!origin_.here()) return INT64_MAX;
    const std::shared_ptr<SamplerCore> core = this->core();
    if (core->threaded()) throw std::logic_error("tick() is for a sampler started with threaded=False");
    return core->running() ? core->tick(now_ns) : INT64_MAX;
}

void Sampler::find_edge() {
    if (origin_.here()) core()->find_edge();
}

bool Sampler::edge_pending() const { return origin_.here() && core()->edge_pending(); }

void Sampler::read_counter() {
    if (origin_.here()) core()->read_counter();
}

bool Sampler::reads_pending() const { return origin_.here() && core()->reads_pending(); }

void Sampler::drain_now() {
    if (origin_.here()) core()->drain_now();
}

void Sampler::drain_every(int64_t period_ns) {
    if (origin_.here()) core()->drain_every(period_ns);
}

uint64_t Sampler::wait_drained(std::chrono::nanoseconds timeout) {
    return origin_.here() ? core()->wait_drained(timeout) : 0;
}

std::vector<PowerSample> Sampler::power(size_t device) {
    if (!origin_.here()) return {};
    const std::shared_ptr<SamplerCore> core = this->core();
    return drain(core->device(device).power->ring);
}

std::vector<PowerSample> Sampler::mean(size_t device) {
    if (!origin_.here()) return {};
    const std::shared_ptr<SamplerCore> core = this->core();
    return drain(core->device(device).mean->ring);
}

std::vector<CounterReading> Sampler::counter(size_t device) {
    if (!origin_.here()) return {};
    const std::shared_ptr<SamplerCore> core = this->core();
    return drain(core->device(device).energy.ring);
}

std::vector<CpuReading> Sampler::cpu(size_t counter) {
    if (!origin_.here()) return {};
    const std::shared_ptr<SamplerCore> core = this->core();
    return drain(core->cpu(counter).ring);
}

std::vector<StateReading> Sampler::state(size_t device) {
    if (!origin_.here()) return {};
    const std::shared_ptr<SamplerCore> core = this->core();
    return drain(core->device(device).state.ring);
}

std::vector<ActivityReading> Sampler::activity(size_t device) {
    if (!origin_.here()) return {};
    const std::shared_ptr<SamplerCore> core = this->core();
    return drain(core->device(device).activity.ring);
}

SamplerStats Sampler::stats() const { return origin_.here() ? core()->stats() : SamplerStats(); }

std::vector<std::pair<int, std::string>> Sampler::take_errors() {
    if (!origin_.here()) return {};
    return core()->take_errors();
}

}  // namespace energy
