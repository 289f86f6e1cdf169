#include "refresh_clock.hpp"

#include <algorithm>
#include <cstdlib>

namespace energy {
namespace {

constexpr int64_t kLookEveryNs = 2'000'000;
constexpr size_t kEnoughChanges = 6;
constexpr int64_t kPatienceNs = 1'500'000'000;  // a constant power shows no refresh
constexpr size_t kFewChanges = 3;
constexpr int64_t kLongestLookNs = 60'000'000'000;
constexpr int64_t kBehindNs = 3'000'000;    // reads so long after the refresh; it may be seen 2 ms early or late
constexpr int64_t kShortestNs = 8'000'000;  // an H200 sometimes shows two values within a millisecond of one refresh
constexpr int64_t kLongestNs = 1'000'000'000;

}  // namespace

std::optional<int64_t> RefreshClock::feed(int64_t before_ns, int64_t after_ns, double value) noexcept {
    const bool first = !any_;
    const bool changed = any_ && value != value_;
    const int64_t seen_ns = read_ns_ + (after_ns - read_ns_) / 2;  // it changed since the reading before began
    any_ = true;
    value_ = value;
    read_ns_ = before_ns;
    if (first) refresh_ns_ = before_ns - period_ns_ / 2, look_ns_ = before_ns;

    int64_t refresh_ns = refresh_ns_ + (before_ns - refresh_ns_) / period_ns_ * period_ns_;
    if (looking_ && changed && seen_ns - last_change_ns_ > kShortestNs) {
        refresh_ns = refresh_ns_ = seen_ns;
        const int64_t since_ns = seen_ns - last_change_ns_;
        if (changes_ == 0) first_change_ns_ = seen_ns;
        if (changes_ > 0) shortest_ns_ = changes_ == 1 ? since_ns : std::min(shortest_ns_, since_ns);
        last_change_ns_ = seen_ns;
        ++changes_;
    }
    if (looking_ &&
        (changes_ == (anchor_ns_ == 0 ? kEnoughChanges : kFewChanges) || before_ns - look_ns_ > kPatienceNs))
        learn(before_ns);
    if (!looking_ && before_ns >= look_ns_) look(before_ns);
    if (looking_) {
        next_ns_ = before_ns + kLookEveryNs;
    } else {
        next_ns_ = refresh_ns_ + ((before_ns - kBehindNs - refresh_ns_) / period_ns_ + 1) * period_ns_ + kBehindNs;
    }
    if (refresh_ns <= given_ns_ + (looking_ ? kShortestNs : period_ns_ / 2)) return std::nullopt;
    given_ns_ = refresh_ns;
    return refresh_ns;
}

void RefreshClock::look(int64_t now_ns) noexcept {
    looking_ = true;
    look_ns_ = now_ns;
    changes_ = 0;
}

void RefreshClock::learn(int64_t now_ns) noexcept {
    looking_ = false;
    look_ns_ = now_ns + look_after_ns_;
    if (changes_ < kFewChanges || shortest_ns_ > kLongestNs) return;  // goes on as before
    look_after_ns_ = std::min(4 * look_after_ns_, kLongestLookNs);
    if (anchor_ns_ != 0) {  // the longer ago, the better it tells the period
        const int64_t since_ns = last_change_ns_ - anchor_ns_;
        const int64_t periods = (since_ns + period_ns_ / 2) / period_ns_;
        if (std::abs(since_ns - periods * period_ns_) < period_ns_ / 4) {
            period_ns_ = since_ns / periods;
            return;
        }
    }
    // Some refreshes bring no new value: the shortest time between two changes tells how many periods the others are.
    anchor_ns_ = first_change_ns_;
    look_after_ns_ = kFirstLookNs;
    const int64_t span_ns = last_change_ns_ - first_change_ns_;
    period_ns_ = span_ns / ((span_ns + shortest_ns_ / 2) / shortest_ns_);
}

}  // namespace energy
