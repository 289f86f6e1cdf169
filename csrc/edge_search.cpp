#include "edge_search.hpp"

#include <algorithm>

namespace energy {
namespace {

constexpr int64_t kReadNs = 3'000'000;     // what a read takes in the median on an H200
constexpr int64_t kNarrowNs = 10'000'000;  // 2 J at 700 W: halving it again costs more than it gains
constexpr int kMostPeriods = 6;
constexpr int kMostReads = 40;

}  // namespace

void EdgeSearch::feed(const CounterReading& reading) noexcept {
    if (++reads_ == 1) {
        start(reading);
    } else {
        const bool refreshed = reading.energy_j != energy_j_;
        if (refreshed) {
            to_ns_ = std::min(to_ns_, reading.after_ns);
        } else {
            from_ns_ = std::max(from_ns_, reading.before_ns);
        }
        if (from_ns_ >= to_ns_) {
            done_ = contradicted_;
            contradicted_ = true;
            start(reading);
        } else if (refreshed && reading.after_ns >= from_ns_ + kRefreshNs) {
            start(reading);  // so late that it may show the refresh after
        } else if (refreshed) {
            turn(reading);
        }
    }
    if (reads_ == kMostReads) done_ = true;
    plan(reading.after_ns);
}

void EdgeSearch::start(const CounterReading& reading) noexcept {
    from_ns_ = reading.before_ns;
    to_ns_ = reading.after_ns + kRefreshNs;
    energy_j_ = reading.energy_j;
    periods_ = 0;
}

void EdgeSearch::turn(const CounterReading& reading) noexcept {
    if (narrow() || ++periods_ == kMostPeriods) {
        edge_ = CounterReading{from_ns_, to_ns_, reading.energy_j, 1};
        done_ = true;
    }
    from_ns_ += kRefreshNs;
    to_ns_ += kRefreshNs;
    energy_j_ = reading.energy_j;
}

void EdgeSearch::plan(int64_t now_ns) noexcept {
    const int64_t halving = std::max((from_ns_ + to_ns_ - kReadNs) / 2, now_ns);
    const bool gains = !narrow() && halving + kReadNs <= to_ns_;
    next_ns_ = gains ? halving : std::max(to_ns_, now_ns);  // behind the bracket is the new value, to go on from
}

bool EdgeSearch::narrow() const noexcept { return to_ns_ - from_ns_ <= kNarrowNs; }

}  // namespace energy
