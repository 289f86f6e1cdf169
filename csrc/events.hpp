// A pool of CUDA events, recorded by the marking thread and timed later by the resolving thread.
//
// The pool belongs to the context that is current at its first record(). Nothing here waits for the device. A CUDA
// error other than a bad stream ends the pool: no more events, those underway are given up, last_error() says why.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "clock.hpp"
#include "cuda.hpp"

namespace energy {

struct Ticket {  // an event underway
    Cuda::Event event;
    Cuda::Stream stream;
};

class EventPool {
  public:
    static constexpr int64_t kNoTime = -1;
    // Whoever settles may let so many events come in before it does.
    static constexpr size_t kReserve = 256;

    EventPool(std::shared_ptr<const Cuda> cuda, std::shared_ptr<const Clock> clock, size_t most_events);
    ~EventPool();
    EventPool(const EventPool&) = delete;
    EventPool& operator=(const EventPool&) = delete;

    // Marking thread. Null: no event this time (no or another context, a capture, none left, or an error).
    Cuda::Event record(Cuda::Stream stream) noexcept;

    // Resolving thread. Takes completed tickets off the front and appends the time of each; kNoTime for one given up.
    void settle(std::deque<Ticket>& tickets, std::vector<int64_t>& times_ns);

    std::string last_error() const;  // any thread

  private:
    class Marking;
    class Resolving;
    struct Shared;
    std::unique_ptr<Shared> shared_;  // first in, last out: the other two use it
    std::unique_ptr<Marking> marking_;
    std::unique_ptr<Resolving> resolving_;
};

}  // namespace energy
