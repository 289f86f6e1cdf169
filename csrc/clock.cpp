#include "clock.hpp"

#include <ctime>

#include "error.hpp"
#include "library.hpp"

namespace energy {
namespace {

template <clockid_t id>
int64_t read_clock() {
    timespec t{};
    clock_gettime(id, &t);
    return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

}  // namespace

std::shared_ptr<Clock> Clock::monotonic() {
    return std::shared_ptr<Clock>(new Clock(read_clock<CLOCK_MONOTONIC>, read_clock<CLOCK_REALTIME>));
}

std::shared_ptr<Clock> Clock::simulated(const std::string& nvml_path) {
    const Library library(nvml_path, "The simulated NVML library is needed here.");
    auto* now = library.find<Reader>("ep_sim_monotonic_ns");
    auto* wall = library.find<Reader>("ep_sim_wall_ns");
    if (now == nullptr || wall == nullptr) {
        throw LibraryError(nvml_path + " is not a simulated NVML library: it has no ep_sim_monotonic_ns. Use " +
                           "Clock.monotonic() with a real driver.");
    }
    return std::shared_ptr<Clock>(new Clock(now, wall));
}

int64_t thread_cpu_ns() noexcept { return read_clock<CLOCK_THREAD_CPUTIME_ID>(); }

}  // namespace energy
