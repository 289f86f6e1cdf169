#include "refresh_clock.hpp"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace energy {
namespace {

constexpr int64_t kLookEveryNs = 1'930'000;  // divides no likely period, so that changes are seen at different offsets
constexpr size_t kFewChanges = 3;
constexpr int64_t kPatienceNs = 1'500'000'000;   // a constant power shows no refresh
constexpr int64_t kLookAgainNs = 6'000'000'000;  // after the first look whose changes left the period open
constexpr int64_t kLongestLookNs = 60'000'000'000;
constexpr int64_t kBehindNs = 3'000'000;     // reads so long after the refresh, which may be known to 2 ms only
constexpr int64_t kShortestNs = 8'000'000;   // an H200 sometimes shows two values within a millisecond of one refresh
constexpr int64_t kLongestNs = 150'000'000;  // no driver refreshes so seldom: values that repeat look like this
constexpr int64_t kJitterShare = 32;         // of a period; 98 % of an H200's refreshes come within an 80th of theirs

int64_t nearest(int64_t span_ns, int64_t period_ns) { return (span_ns + period_ns / 2) / period_ns; }

}  // namespace

RefreshClock::RefreshClock() noexcept : again_ns_(kLookAgainNs) {}

std::optional<int64_t> RefreshClock::feed(int64_t before_ns, int64_t after_ns, double value) noexcept {
    if (!any_) refresh_ns_ = before_ns - period_ns_ / 2, look_ns_ = read_ns_ = before_ns;
    const bool changed = any_ && value != value_;
    const int64_t error_ns = (after_ns - read_ns_) / 2;  // it changed since the reading before began
    const int64_t seen_ns = read_ns_ + error_ns;
    any_ = true;
    value_ = value;
    read_ns_ = before_ns;

    // Where one is predicted, the value may still be the old one for a moment.
    int64_t refresh_ns = refresh_ns_ + (before_ns - kBehindNs - refresh_ns_) / period_ns_ * period_ns_;
    const bool noted = looking_ && changed && (count_ == 0 || seen_ns - changes_[count_ - 1].t_ns > kShortestNs);
    if (noted) {
        note({seen_ns, error_ns});
        refresh_ns = refresh_ns_ = seen_ns;
        phase_known_ = true;
    }
    const bool patient = before_ns - look_ns_ <= kPatienceNs;
    if (looking_ && (noted || !patient)) learn(before_ns, patient);
    in_a_row_ = changed ? in_a_row_ + 1 : 0;
    const bool much_to_see = in_a_row_ >= kMostChanges && anchor_ns_ == 0;
    if (!looking_ && (before_ns >= look_ns_ || (changed && !phase_known_) || much_to_see)) look(before_ns);
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
    count_ = 0;
}

void RefreshClock::note(Change change) noexcept {
    if (count_ == kMostChanges) std::move(changes_.begin() + 1, changes_.end(), changes_.begin());
    count_ = std::min(count_ + 1, kMostChanges);
    changes_[count_ - 1] = change;
}

void RefreshClock::learn(int64_t now_ns, bool patient) noexcept {
    if (count_ >= kFewChanges && anchor_ns_ != 0 && !refine_period()) anchor_ns_ = 0;  // it was wrong, or is no more
    if (count_ >= (patient ? kMostChanges : kFewChanges) && anchor_ns_ == 0) fit_period();
    const bool learned = count_ >= kFewChanges && anchor_ns_ != 0;
    if (patient && !learned) return;
    looking_ = false;
    if (!learned) {  // goes on as before, or by the likeliest period
        const bool open = count_ > 0 && anchor_ns_ == 0;
        look_ns_ = now_ns + (open ? again_ns_ : kLongestLookNs);
        if (open) again_ns_ = std::min(2 * again_ns_, kLongestLookNs);
        return;
    }
    // The next look must come before the phase is off by more than some milliseconds, and before it is uncertain by a
    // quarter of a period which refresh it will see.
    const int64_t last_ns = changes_[count_ - 1].t_ns;
    const int64_t fitted_ns = last_ns - anchor_ns_;
    look_ns_ = now_ns + std::min({fitted_ns, fitted_ns / kLookEveryNs * period_ns_ / 8, kLongestLookNs});
    // Each change was seen up to one look late or early: the mean of all is better than any.
    int64_t early_ns = 0;
    for (size_t i = 0; i < count_; ++i) {
        const int64_t ago_ns = last_ns - changes_[i].t_ns;
        early_ns += nearest(ago_ns, period_ns_) * period_ns_ - ago_ns;
    }
    refresh_ns_ = last_ns + early_ns / static_cast<int64_t>(count_);
}

bool RefreshClock::refine_period() noexcept {
    const int64_t since_ns = changes_[count_ - 1].t_ns - anchor_ns_;  // the longer ago, the better it tells the period
    const int64_t periods = nearest(since_ns, period_ns_);
    if (misfit_ns(period_ns_) > 0 || std::abs(since_ns - periods * period_ns_) >= period_ns_ / 4) return false;
    period_ns_ = since_ns / periods;
    return true;
}

void RefreshClock::fit_period() noexcept {
    // Some refreshes bring no new value: the shortest time between two changes is one period, about.
    int64_t shortest_ns = INT64_MAX;
    int64_t error_ns = 0;
    for (size_t i = 1; i < count_; ++i) {
        const int64_t between_ns = changes_[i].t_ns - changes_[i - 1].t_ns;
        if (between_ns >= shortest_ns) continue;
        shortest_ns = between_ns;
        error_ns = changes_[i].error_ns + changes_[i - 1].error_ns + between_ns / kJitterShare;
    }
    if (shortest_ns > kLongestNs) return;  // they tell the phase, at least
    // It does not tell how many periods are in a time many times as long: that must fit the other changes, too.
    const int64_t span_ns = changes_[count_ - 1].t_ns - changes_[0].t_ns;
    const int64_t most = span_ns / std::max(shortest_ns - error_ns, kShortestNs / 2);
    int64_t fits = 0;
    int64_t least_ns = 0;
    for (int64_t periods = std::max<int64_t>(span_ns / (shortest_ns + error_ns), 1); periods <= most; ++periods) {
        const int64_t misfit = misfit_ns(span_ns / periods);
        if (misfit > 0) continue;
        if (++fits == 1 || misfit < least_ns) least_ns = misfit, period_ns_ = span_ns / periods;
    }
    if (fits == 1) anchor_ns_ = changes_[0].t_ns;
}

int64_t RefreshClock::misfit_ns(int64_t period_ns) const noexcept {
    int64_t earliest_ns = INT64_MIN;
    int64_t latest_ns = INT64_MAX;
    int64_t periods = -1;
    for (size_t i = 0; i < count_; ++i) {
        const int64_t since_ns = changes_[i].t_ns - changes_[0].t_ns;
        const int64_t before = std::exchange(periods, nearest(since_ns, period_ns));
        if (periods == before) return period_ns;  // two in one period
        const int64_t off_ns = since_ns - periods * period_ns;
        const int64_t error_ns = changes_[i].error_ns + period_ns / kJitterShare;
        earliest_ns = std::max(earliest_ns, off_ns - error_ns);
        latest_ns = std::min(latest_ns, off_ns + error_ns);
    }
    return earliest_ns - latest_ns;
}

}  // namespace energy
