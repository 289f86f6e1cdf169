#include "refresh_clock.hpp"

#include <algorithm>
#include <cstdlib>

namespace energy {
namespace {

constexpr int64_t kLookEveryNs = 1'930'000;  // divides no likely period, so that changes are seen at different offsets
constexpr size_t kFewChanges = 3;
constexpr int64_t kPatienceNs = 1'500'000'000;  // a constant power shows no refresh
constexpr int64_t kLongestLookNs = 60'000'000'000;
constexpr int64_t kBehindNs = 3'000'000;     // reads so long after the refresh, which may be known to 2 ms only
constexpr int64_t kShortestNs = 8'000'000;   // an H200 sometimes shows two values within a millisecond of one refresh
constexpr int64_t kLongestNs = 150'000'000;  // no driver refreshes so seldom: values that repeat look like this

int64_t nearest(int64_t span_ns, int64_t period_ns) { return (span_ns + period_ns / 2) / period_ns; }

}  // namespace

std::optional<int64_t> RefreshClock::feed(int64_t before_ns, int64_t after_ns, double value) noexcept {
    if (!any_) refresh_ns_ = before_ns - period_ns_ / 2, look_ns_ = read_ns_ = before_ns;
    const bool changed = any_ && value != value_;
    const int64_t seen_ns = read_ns_ + (after_ns - read_ns_) / 2;  // it changed since the reading before began
    any_ = true;
    value_ = value;
    read_ns_ = before_ns;

    // Where one is predicted, the value may still be the old one for a moment.
    int64_t refresh_ns = refresh_ns_ + (before_ns - kBehindNs - refresh_ns_) / period_ns_ * period_ns_;
    if (looking_ && changed && (changes_ == 0 || seen_ns - changes_ns_[changes_ - 1] > kShortestNs)) {
        refresh_ns = refresh_ns_ = changes_ns_[changes_++] = seen_ns;
        phase_known_ = true;
    }
    const size_t enough = anchor_ns_ == 0 ? kMostChanges : kFewChanges;
    if (looking_ && (changes_ == enough || before_ns - look_ns_ > kPatienceNs)) learn(before_ns);
    if (!looking_ && (before_ns >= look_ns_ || (changed && !phase_known_))) look(before_ns);
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
    look_ns_ = now_ns + kLongestLookNs;
    if (changes_ < kFewChanges) return;  // goes on as before
    fit_period();
    // The next look must come before the phase is off by more than some milliseconds, and before it is uncertain by a
    // quarter of a period which refresh it will see.
    const int64_t fitted_ns = changes_ns_[changes_ - 1] - anchor_ns_;
    look_ns_ = now_ns + std::min({fitted_ns, fitted_ns / kLookEveryNs * period_ns_ / 8, kLongestLookNs});
    // Each change was seen up to one look late or early: the mean of all is better than any.
    const int64_t last_ns = changes_ns_[changes_ - 1];
    int64_t early_ns = 0;
    for (size_t i = 0; i < changes_; ++i) {
        const int64_t ago_ns = last_ns - changes_ns_[i];
        early_ns += nearest(ago_ns, period_ns_) * period_ns_ - ago_ns;
    }
    refresh_ns_ = last_ns + early_ns / static_cast<int64_t>(changes_);
}

void RefreshClock::fit_period() noexcept {
    const int64_t last_ns = changes_ns_[changes_ - 1];
    if (anchor_ns_ != 0) {  // the longer ago, the better it tells the period
        const int64_t since_ns = last_ns - anchor_ns_;
        const int64_t periods = nearest(since_ns, period_ns_);
        if (std::abs(since_ns - periods * period_ns_) < period_ns_ / 4) {
            period_ns_ = since_ns / periods;
            return;
        }
    }
    // Some refreshes bring no new value: the shortest time between two changes tells how many periods the others are.
    int64_t shortest_ns = INT64_MAX;
    for (size_t i = 1; i < changes_; ++i) shortest_ns = std::min(shortest_ns, changes_ns_[i] - changes_ns_[i - 1]);
    anchor_ns_ = changes_ns_[0];
    if (shortest_ns > kLongestNs) return;  // they tell the phase, at least
    period_ns_ = (last_ns - anchor_ns_) / nearest(last_ns - anchor_ns_, shortest_ns);
}

}  // namespace energy
