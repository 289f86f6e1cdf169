#include "control.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <iterator>
#include <limits>
#include <memory>

#include "clock.hpp"
#include "faults.hpp"
#include "roofline.hpp"
#include "state.hpp"
#include "timeline.hpp"

namespace {

// Runs act(state, device) under the lock; ENODEV if there is no such device here.
template <typename Act>
int with_device(std::uint32_t index, Act act) {
    const std::shared_ptr<sim::State> state = sim::attached();
    if (state == nullptr || index >= state->config.device_count) return ENODEV;
    const sim::Lock lock(*state);
    return act(*state, state->device(index));
}

void remember_client(sim::Device& device) {
    const auto self = static_cast<std::int32_t>(getpid());
    for (std::int32_t& client : device.clients) {
        if (client == self) return;
        if (client == 0) {
            client = self;
            return;
        }
    }
}

}  // namespace

const char* ep_sim_version() { return "1"; }

int ep_sim_create(const char* path, const EpSimConfig* config) { return sim::create(path, *config); }

int ep_sim_attach(const char* path) { return sim::attach(path); }

std::int64_t ep_sim_monotonic_ns() {
    const std::shared_ptr<sim::State> state = sim::attached();
    return state == nullptr ? sim::os_clock_ns(CLOCK_MONOTONIC) : sim::now_ns(*state);
}

std::int64_t ep_sim_wall_ns() {
    const std::shared_ptr<sim::State> state = sim::attached();
    if (state == nullptr) return sim::os_clock_ns(CLOCK_REALTIME);
    const sim::Lock lock(*state);
    return sim::wall_ns(*state, sim::now_ns(*state));
}

std::int64_t ep_sim_origin_ns() {
    const std::shared_ptr<sim::State> state = sim::attached();
    return state == nullptr ? 0 : state->origin_ns;
}

void ep_sim_advance(std::int64_t ns) {
    const std::shared_ptr<sim::State> state = sim::attached();
    if (state != nullptr && state->config.virtual_time != 0 && ns > 0) state->clock_ns.fetch_add(ns);
}

int ep_sim_step_wall_clock(std::int64_t ns) {
    const std::shared_ptr<sim::State> state = sim::attached();
    if (state == nullptr) return ENODEV;
    const sim::Lock lock(*state);
    if (state->wall_step_count == sim::kMaxWallSteps) return ENOSPC;
    const std::int64_t offset_ns = state->wall_steps[state->wall_step_count - 1].offset_ns;
    state->wall_steps[state->wall_step_count] = {sim::now_ns(*state), offset_ns + ns};
    ++state->wall_step_count;
    return 0;
}

int ep_sim_suspend(std::int64_t ns) {
    const int error = ep_sim_step_wall_clock(ns);
    if (error == 0) sim::attached()->suspended_ns.fetch_add(ns);
    return error;
}

std::int64_t ep_sim_suspended_ns() {
    const std::shared_ptr<sim::State> state = sim::attached();
    return state == nullptr ? 0 : state->suspended_ns.load();
}

int ep_sim_uuid(std::uint32_t device, char* text, std::uint32_t size) {
    return with_device(device, [&](sim::State&, sim::Device& gpu) {
        return std::snprintf(text, size, "%s", gpu.uuid) < static_cast<int>(size) ? 0 : EINVAL;
    });
}

int ep_sim_play(std::uint32_t device, const std::int64_t* duration_ns, const double* power_w, std::uint32_t count,
                int repeat, std::int64_t from_ns) {
    return with_device(device, [&](sim::State&, sim::Device& gpu) {
        return sim::play(gpu, duration_ns, power_w, count, repeat != 0, from_ns);
    });
}

std::int64_t ep_sim_launch(std::uint32_t device, double ops, double bytes) {
    std::int64_t wait_ns = 0;
    const int error = with_device(device, [&](sim::State& state, sim::Device& gpu) {
        const std::int64_t now_ns = sim::now_ns(state);
        std::int64_t& slot_ns = gpu.kernel_end_ns[gpu.kernel_count % sim::kQueueDepth];
        wait_ns = gpu.kernel_count < sim::kQueueDepth ? 0 : std::max<std::int64_t>(slot_ns - now_ns, 0);
        if (wait_ns > 0) return 0;
        const EpSimProfile& profile = state.config.profile;
        const double clock_mhz = gpu.locked_mhz > 0.0 ? gpu.locked_mhz : profile.max_clock_mhz;
        const sim::Cost cost = sim::run(profile, ops, bytes, sim::enforced_limit_w(gpu, now_ns), clock_mhz);
        const auto duration_ns = std::max<std::int64_t>(static_cast<std::int64_t>(cost.seconds * 1e9), 1);
        sim::append(gpu, now_ns, duration_ns, cost);
        slot_ns = sim::idle_at_ns(gpu);
        ++gpu.kernel_count;
        remember_client(gpu);
        return 0;
    });
    return error != 0 ? -error : wait_ns;
}

std::int64_t ep_sim_idle_at_ns(std::uint32_t device) {
    std::int64_t idle_ns = std::numeric_limits<std::int64_t>::min();
    with_device(device, [&](sim::State&, sim::Device& gpu) {
        idle_ns = sim::idle_at_ns(gpu);
        return 0;
    });
    return idle_ns;
}

double ep_sim_energy_j(std::uint32_t device, std::int64_t start_ns, std::int64_t end_ns) {
    double energy_j = std::numeric_limits<double>::quiet_NaN();
    with_device(device, [&](sim::State&, sim::Device& gpu) {
        energy_j = sim::energy_j(gpu, end_ns) - sim::energy_j(gpu, start_ns);
        return 0;
    });
    return energy_j;
}

int ep_sim_inject(std::uint32_t device, const EpSimFault* fault) {
    return with_device(device, [&](sim::State& state, sim::Device& gpu) {
        const std::int64_t now_ns = sim::now_ns(state);
        const auto free = std::find_if(std::begin(gpu.faults), std::end(gpu.faults), [&](const sim::Fault& slot) {
            return !slot.active || slot.what.until_ns <= now_ns;
        });
        if (free == std::end(gpu.faults)) return ENOSPC;
        free->what = *fault;
        free->active = true;
        return 0;
    });
}

int ep_sim_heal(std::uint32_t device) {
    return with_device(device, [](sim::State&, sim::Device& gpu) {
        for (sim::Fault& fault : gpu.faults) fault.active = fault.active && sim::lasts(fault.what.kind);
        return 0;
    });
}

int ep_sim_seize_lock() {
    const std::shared_ptr<sim::State> state = sim::attached();
    if (state == nullptr) return ENODEV;
    new sim::Lock(*state);
    return 0;
}
