// The one clock: CLOCK_MONOTONIC nanoseconds and the wall clock beside it, or a simulator's pair of the same.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace energy {

class Clock {
  public:
    static std::shared_ptr<Clock> monotonic();
    // Reads ep_sim_monotonic_ns and ep_sim_wall_ns of the simulated NVML library at this path; throws LibraryError.
    static std::shared_ptr<Clock> simulated(const std::string& nvml_path);

    // Any thread; a few tens of nanoseconds.
    int64_t now_ns() const noexcept { return now_(); }
    int64_t wall_ns() const noexcept { return wall_(); }

  private:
    using Reader = int64_t();

    Clock(Reader* now, Reader* wall) noexcept : now_(now), wall_(wall) {}

    Reader* now_;
    Reader* wall_;
};

// CPU time of the calling thread (CLOCK_THREAD_CPUTIME_ID), real even where the clock is simulated.
int64_t thread_cpu_ns() noexcept;

}  // namespace energy
