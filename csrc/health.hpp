// When a lane may work. After an error it pauses, 1 s doubling to 3.5 s, because a lost GPU may come back, and so may
// a sensor that once worked; what this driver or this user could never do ends it. Owned by the thread that drives the
// lane.
#pragma once

#include <cstdint>

#include "error.hpp"

namespace energy {

class Health {
  public:
    bool may_try(int64_t now_ns) const noexcept { return !ended_ && now_ns >= retry_ns_; }
    bool ended() const noexcept { return ended_; }
    bool failing() const noexcept { return pause_ns_ > 0; }
    int64_t retry_ns() const noexcept { return retry_ns_; }

    void hurry() noexcept { retry_ns_ = INT64_MIN; }  // cuts the pause short
    void worked() noexcept;
    // True when the error is news: another one than at the try before. "Not supported" from the start is none, because
    // probe() has already said so.
    bool failed(const NvmlError& error, int64_t now_ns);

  private:
    bool ended_ = false;
    bool ever_worked_ = false;
    int64_t retry_ns_ = INT64_MIN;
    int64_t pause_ns_ = 0;
    int last_code_ = 0;
};

}  // namespace energy
