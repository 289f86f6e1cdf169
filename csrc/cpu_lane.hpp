// Reads one energy counter of the CPU.
//
// One thread at a time drives a lane, another may drain its ring. A counter that fails is tried again at the next read.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "clock.hpp"
#include "rapl.hpp"
#include "ring.hpp"

namespace energy {

// The counter stood at `count` at some instant of [before_ns, after_ns].
struct CpuReading {
    int64_t before_ns;
    int64_t after_ns;
    uint64_t count;
};

class CpuLane {
  public:
    CpuLane(std::shared_ptr<RaplCounter> counter, const Clock& clock) : counter_(std::move(counter)), clock_(clock) {}

    const std::shared_ptr<RaplCounter>& counter() const noexcept { return counter_; }
    std::optional<std::string> read();  // what went wrong, when that is news

    Ring<CpuReading> ring{1024};  // a reading a second: for a quarter of an hour in which nobody drains

  private:
    const std::shared_ptr<RaplCounter> counter_;
    const Clock& clock_;
    bool failing_ = false;
};

}  // namespace energy
