// How long work takes and what it draws: a roofline, slowed by a clock-voltage curve when a limit or a lock binds.
#pragma once

#include "control.hpp"

namespace sim {

struct Cost {
    double seconds;
    double power_w;
    double clock_mhz;
    double memory_share;   // of the time, memory was busy
    double compute_share;  // and the arithmetic units
    double busy_share;     // of all the time; the rest is launching, which the other shares leave out
};

// What a kernel of `ops` operations and `bytes` of traffic costs under `limit_w` with clocks up to `clock_mhz`.
Cost run(const EpSimProfile& profile, double ops, double bytes, double limit_w, double clock_mhz);

}  // namespace sim
