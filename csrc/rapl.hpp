// Energy counters of CPU packages and of DRAM (RAPL), which the kernel shows in two ways: as text in a file of sysfs,
// or as a perf event. What a count is worth, and where it wraps, the caller knows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace energy {

class RaplCounter {
  public:
    // Both open the counter and read it once; CounterError says what is in the way.
    static std::shared_ptr<RaplCounter> file(const std::string& path);
    static std::shared_ptr<RaplCounter> perf(uint32_t type, uint64_t config, int cpu);

    virtual ~RaplCounter() = default;
    RaplCounter(const RaplCounter&) = delete;
    RaplCounter& operator=(const RaplCounter&) = delete;

    // One thread at a time. Throws CounterError; a file that has gone is opened again by the next call.
    virtual uint64_t read() = 0;

  protected:
    RaplCounter() = default;
};

}  // namespace energy
