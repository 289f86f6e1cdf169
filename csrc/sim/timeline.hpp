// The power a device draws, as an exact function of time: launched work where there is any, else the script.
// The caller holds the state's lock. Before the first script was
// played, it repeated if it repeats, else its first power held.
#pragma once

#include <algorithm>
#include <cstdint>

#include "roofline.hpp"
#include "state.hpp"

namespace sim {

struct Level {
    double power_w;
    std::int64_t until_ns;
};

// Joules drawn from the beginning of the first script up to `t_ns`: the analytic integral, however long. NaN if the
// timeline has forgotten that time (more than kMaxWork stretches of work ago).
double energy_j(const Device& device, std::int64_t t_ns);

// The power at `t_ns`, and until when it certainly stays.
Level level_at(const Device& device, std::int64_t t_ns);

// The work that runs at `t_ns`, or nullptr.
const Work* work_at(const Device& device, std::int64_t t_ns);

// When the queued work ends; in the past (or the smallest time there is) when there is none.
std::int64_t idle_at_ns(const Device& device);

// Lets a new script take over at `from_ns`, which must not lie before the previous one's. Returns 0 or an errno.
int play(Device& device, const std::int64_t* duration_ns, const double* power_w, std::uint32_t count, bool repeat,
         std::int64_t from_ns);

// Appends work at the end of the queue, or at `now_ns` if the queue is empty.
void append(Device& device, std::int64_t now_ns, std::int64_t duration_ns, const Cost& cost);

// Calls visit(start_ns, end_ns, power_w) for each stretch of constant power in [start_ns, end_ns).
template <typename Visit>
void for_each_level(const Device& device, std::int64_t start_ns, std::int64_t end_ns, Visit visit) {
    for (std::int64_t t = start_ns; t < end_ns;) {
        const Level level = level_at(device, t);
        const std::int64_t until = std::min(level.until_ns, end_ns);
        visit(t, until, level.power_w);
        t = until;
    }
}

}  // namespace sim
