// Finds the instant at which an energy counter refreshes with as few reads as possible, because each burns milliseconds
// of CPU time. Pure: it says when to read and is told what was read. A reading that comes late tells less, and never
// anything wrong.
//
// A bracket is halved: a read of the old value moves its start, one of the new value its end, and then the search goes
// on around the next refresh, one period later.
#pragma once

#include <cstdint>
#include <optional>

#include "counter_reading.hpp"

namespace energy {

class EdgeSearch {
  public:
    int64_t next_ns() const noexcept { return next_ns_; }  // when to read next; at first: at once
    void feed(const CounterReading& reading) noexcept;
    bool fresh() const noexcept { return reads_ == 0; }
    bool done() const noexcept { return done_; }
    // What was found, when done: the bracket of the last refresh seen, and the value to which the counter came there.
    // Nothing for a counter that stands still or does not keep its period.
    const std::optional<CounterReading>& edge() const noexcept { return edge_; }

  private:
    void start(const CounterReading& reading) noexcept;
    void turn(const CounterReading& reading) noexcept;
    void plan(int64_t now_ns) noexcept;
    bool narrow() const noexcept;

    int64_t from_ns_ = 0, to_ns_ = 0;  // the counter leaves energy_j_ between these
    double energy_j_ = 0;
    int64_t next_ns_ = INT64_MIN;
    int reads_ = 0, periods_ = 0;
    bool contradicted_ = false, done_ = false;
    std::optional<CounterReading> edge_;
};

}  // namespace energy
