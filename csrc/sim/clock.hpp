// The simulation's time: the machine's monotonic clock, or a number that only calls and tests move (virtual time).
#pragma once

#include <time.h>

#include <cstdint>

#include "state.hpp"

namespace sim {

std::int64_t os_clock_ns(clockid_t clock);

std::int64_t now_ns(const State& state);

// The wall clock as it stood at monotonic `t_ns`; the caller holds the lock.
std::int64_t wall_ns(const State& state, std::int64_t t_ns);

// Lets `ns` pass: virtual time moves on; real time is burnt on this CPU, as the driver burns it.
void spend(State& state, std::int64_t ns);

// Lets `ns` pass without using the CPU.
void rest(State& state, std::int64_t ns);

}  // namespace sim
