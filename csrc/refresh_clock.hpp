// When to poll a reading that the driver makes anew in some period, learned from the instants at which it changed.
// Pure: it says when to read next and is told what was read.
//
// It looks every 2 ms until it has seen some changes: at first, and then ever more seldom, up to once a minute, because
// each look tells the period better, which drifts against the host's clock. Otherwise it reads once a period, shortly
// after the refresh.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace energy {

class RefreshClock {
  public:
    // Tells what was read between two instants. Returns the refresh that the value is of, when that is a new one.
    std::optional<int64_t> feed(int64_t before_ns, int64_t after_ns, double value) noexcept;
    int64_t next_ns() const noexcept { return next_ns_; }  // at first: at once
    int64_t period_ns() const noexcept { return period_ns_; }

  private:
    void look(int64_t now_ns) noexcept;
    void learn(int64_t now_ns) noexcept;
    void fit_period() noexcept;

    static constexpr size_t kMostChanges = 6;
    int64_t period_ns_ = 100'000'000;
    int64_t refresh_ns_ = 0;            // one that is known, or assumed
    int64_t given_ns_ = INT64_MIN / 2;  // the refresh that was last returned
    int64_t next_ns_ = INT64_MIN;
    int64_t read_ns_ = 0;  // when the reading before began
    double value_ = 0;
    bool any_ = false;

    bool looking_ = true;
    bool phase_known_ = false;                        // a change was seen while looking
    int64_t look_ns_ = 0;                             // when it began, or is to begin
    std::array<int64_t, kMostChanges> changes_ns_{};  // seen in this look
    size_t changes_ = 0;
    int64_t anchor_ns_ = 0;  // the first refresh of those that fit the period
};

}  // namespace energy
