// When to poll a reading that the driver makes anew in some period, learned from the instants at which it changed.
// Pure: it says when to read next and is told what was read.
//
// It looks every 2 ms until the changes it has seen fit one period alone: at first, and then ever more seldom, up to
// once a minute, because each look tells the period better, which drifts against the host's clock. Otherwise it reads
// once a period, shortly after the refresh. Some refreshes bring no new value; a look that is too short to tell how
// many is repeated, ever more seldom or when the value changes at every reading, and what it learned is a guess until
// then.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace energy {

class RefreshClock {
  public:
    RefreshClock() noexcept;

    // Tells what was read between two instants. Returns the refresh that the value is of, when that is a new one.
    std::optional<int64_t> feed(int64_t before_ns, int64_t after_ns, double value) noexcept;
    int64_t next_ns() const noexcept { return next_ns_; }  // at first: at once
    int64_t period_ns() const noexcept { return period_ns_; }

  private:
    struct Change {
        int64_t t_ns;
        int64_t error_ns;  // seen so much early or late, at most
    };

    void look(int64_t now_ns) noexcept;
    void note(Change change) noexcept;
    void learn(int64_t now_ns, bool patient) noexcept;
    bool refine_period() noexcept;  // false: the changes contradict it
    void fit_period() noexcept;     // the likeliest; with an anchor if no other explains the changes
    int64_t misfit_ns(int64_t period_ns) const noexcept;  // above 0: no phase explains all changes

    static constexpr size_t kMostChanges = 6;
    int64_t period_ns_ = 100'000'000;
    int64_t refresh_ns_ = 0;            // one that is known, or assumed
    int64_t given_ns_ = INT64_MIN / 2;  // the refresh that was last returned
    int64_t next_ns_ = INT64_MIN;
    int64_t read_ns_ = 0;  // when the reading before began
    double value_ = 0;
    bool any_ = false;

    bool looking_ = true;
    bool phase_known_ = false;                    // a change was seen while looking
    int64_t look_ns_ = 0;                         // when it began, or is to begin
    int64_t again_ns_;                            // the pause after the next look that leaves the period open
    size_t in_a_row_ = 0;                         // readings that each brought a new value
    std::array<Change, kMostChanges> changes_{};  // the last that were seen in this look
    size_t count_ = 0;                            // of them
    int64_t anchor_ns_ = 0;                       // the first refresh of those that fit the period; 0: it is not sure
};

}  // namespace energy
