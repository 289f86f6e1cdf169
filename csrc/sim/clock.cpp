#include "clock.hpp"

#include <cerrno>

namespace sim {

std::int64_t os_clock_ns(clockid_t clock) {
    timespec now = {};
    clock_gettime(clock, &now);
    return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

std::int64_t now_ns(const State& state) {
    return state.config.virtual_time != 0 ? state.clock_ns.load() : os_clock_ns(CLOCK_MONOTONIC);
}

std::int64_t wall_ns(const State& state, std::int64_t t_ns) {
    std::uint32_t step = state.wall_step_count - 1;
    while (step > 0 && state.wall_steps[step].from_ns > t_ns) --step;
    return t_ns + state.wall_steps[step].offset_ns;
}

void spend(State& state, std::int64_t ns) {
    if (state.config.virtual_time != 0) {
        state.clock_ns.fetch_add(ns);
        return;
    }
    const std::int64_t until = os_clock_ns(CLOCK_MONOTONIC) + ns;
    while (os_clock_ns(CLOCK_MONOTONIC) < until) {
    }
}

void rest(State& state, std::int64_t ns) {
    if (state.config.virtual_time != 0) {
        state.clock_ns.fetch_add(ns);
        return;
    }
    timespec left = {ns / 1'000'000'000, ns % 1'000'000'000};
    while (nanosleep(&left, &left) == -1 && errno == EINTR) {
    }
}

}  // namespace sim
