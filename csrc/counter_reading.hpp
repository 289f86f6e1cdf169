// One reading of an energy counter.
#pragma once

#include <cstdint>

namespace energy {

constexpr int64_t kRefreshNs = 100'000'000;  // how often the counter comes to a new value; steady on an H200

// The counter stood at energy_j at some instant of [before_ns, after_ns]; with edge = 1 it came to that value there.
struct CounterReading {
    int64_t before_ns;
    int64_t after_ns;
    double energy_j;
    uint8_t edge;
};

}  // namespace energy
