// The clock of a polled reading against readings that are arithmetic: every period and phase, late reads, values that
// stay, and a period that drifts.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "../refresh_clock.hpp"
#include "check.hpp"

namespace {

using namespace energy;

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kSecond = 1'000'000'000;

struct Reading {
    int64_t period_ns;
    int64_t phase_ns;
    std::function<double(int64_t refresh)> value = [](int64_t refresh) { return static_cast<double>(refresh % 11); };
    int64_t late_ns = 0;        // at most
    int64_t early_refresh = 0;  // one that comes 15 ms before its time, as an H200's sometimes does

    int64_t refresh_at(int64_t t_ns) const {
        if ((t_ns + 15 * kMs - phase_ns) / period_ns == early_refresh) return early_refresh;
        return (t_ns - phase_ns) / period_ns;
    }
};

struct Played {
    std::vector<int64_t> stamps_ns;
    std::vector<double> values;
    int64_t reads = 0;
    int64_t learned_ns = 0;
};

Played play(const Reading& reading, int64_t duration_ns) {
    RefreshClock clock;
    Played played;
    std::mt19937_64 random(7);
    int64_t now = 10 * kSecond;
    const int64_t end = now + duration_ns;
    while (now < end) {
        if (reading.late_ns > 0) now += static_cast<int64_t>(random() % static_cast<uint64_t>(reading.late_ns));
        const auto stamp = clock.feed(now, now + 1'000, reading.value(reading.refresh_at(now)));
        ++played.reads;
        if (stamp) {
            played.stamps_ns.push_back(*stamp);
            played.values.push_back(reading.value(reading.refresh_at(now)));
        }
        CHECK(clock.next_ns() > now);
        now = clock.next_ns();
    }
    played.learned_ns = clock.period_ns();
    return played;
}

// How far the stamps after the first second are from refreshes, at most.
int64_t worst_ns(const Reading& reading, const Played& played) {
    int64_t worst = 0;
    for (const int64_t stamp : played.stamps_ns) {
        if (stamp < 12 * kSecond) continue;
        const int64_t late = (stamp - reading.phase_ns) % reading.period_ns;
        worst = std::max(worst, std::min(late, reading.period_ns - late));
    }
    return worst;
}

void every_period_and_phase_is_learned() {
    for (const int64_t period : {10 * kMs, 20 * kMs, 70 * kMs, 100 * kMs, 125 * kMs}) {
        for (int64_t phase = 0; phase < period; phase += period / 7) {
            const Reading reading{period, phase};
            const Played played = play(reading, 20 * kSecond);
            CHECK(std::abs(played.learned_ns - period) < period / 50);
            CHECK(worst_ns(reading, played) <= 3 * kMs);
            const auto expected = 20 * kSecond / period;
            CHECK(std::abs(static_cast<int64_t>(played.stamps_ns.size()) - expected) <= 6);
            CHECK(played.reads <= expected * 6 / 5 + 20 * period / (2 * kMs));
        }
    }
}

void late_reads_still_tell_which_refresh_it_is() {
    const Reading reading{100 * kMs, 41 * kMs, [](int64_t refresh) { return static_cast<double>(refresh % 11); },
                          5 * kMs};
    const Played played = play(reading, 60 * kSecond);
    CHECK(worst_ns(reading, played) <= 8 * kMs);
}

void a_value_that_stays_is_still_given_each_period() {
    Reading reading{100 * kMs, 41 * kMs};
    reading.value = [](int64_t) { return 126.0; };
    Played played = play(reading, 60 * kSecond);
    CHECK(played.stamps_ns.size() >= 598 && played.stamps_ns.size() <= 602);
    CHECK(played.learned_ns == 100 * kMs);
    reading.value = [](int64_t refresh) { return static_cast<double>(refresh / 3); };  // changes every third time
    played = play(reading, 60 * kSecond);
    CHECK(played.stamps_ns.size() >= 598 && worst_ns(reading, played) <= 3 * kMs);
    reading.value = [](int64_t refresh) { return refresh / 3 % 2 == 0 ? 690.0 : 126.0; };
    played = play(reading, 60 * kSecond);
    CHECK(played.stamps_ns.size() >= 598 && worst_ns(reading, played) <= 3 * kMs);
}

// Each stamp carries the value of its own refresh, not of the one before, also while the clock looks again.
void a_value_goes_with_its_refresh() {
    for (int64_t phase = 0; phase < 100 * kMs; phase += 7 * kMs) {
        const Reading reading{100 * kMs + 1'700, phase, [](int64_t refresh) { return static_cast<double>(refresh); }};
        const Played played = play(reading, 200 * kSecond);
        for (size_t i = 0; i < played.stamps_ns.size(); ++i) {
            if (played.stamps_ns[i] < 12 * kSecond) continue;
            const int64_t refresh = reading.refresh_at(played.stamps_ns[i] + 50 * kMs);
            CHECK(played.values[i] == static_cast<double>(refresh));
        }
    }
}

void a_phase_that_was_hidden_is_found_at_the_first_change() {
    Reading reading{100 * kMs, 41 * kMs};
    reading.value = [](int64_t refresh) { return refresh < 115 ? 126.0 : static_cast<double>(refresh); };
    CHECK(worst_ns(reading, play(reading, 20 * kSecond)) <= 3 * kMs);
}

// Watts, as means over the last period, of a load that is on and off for `half_ns` each: they change at its edges
// alone.
std::function<double(int64_t)> wave(int64_t period_ns, int64_t phase_ns, int64_t half_ns) {
    const auto on_ns = [half_ns](int64_t t_ns) {
        return t_ns / (2 * half_ns) * half_ns + std::min(t_ns % (2 * half_ns), half_ns);
    };
    return [=](int64_t refresh) {
        const int64_t end_ns = phase_ns + refresh * period_ns;
        return 40.0 + 250.0 * static_cast<double>(on_ns(end_ns) - on_ns(end_ns - period_ns));
    };
}

// From one edge of 125 ms to the next are 6.25 periods of 20 ms, or 6.5 of the 19.3 ms as which one may be seen. Which
// it is with edges of 165 ms takes more than one look, now and then.
void edges_of_a_load_are_no_refreshes_in_a_row() {
    for (const int64_t half : {50 * kMs, 125 * kMs, 165 * kMs}) {
        for (int64_t phase = 0; phase < 20 * kMs; phase += 700'000) {
            const Reading reading{20 * kMs, phase, wave(20 * kMs, phase, half)};
            const Played played = play(reading, 60 * kSecond);
            CHECK(std::abs(played.learned_ns - 20 * kMs) < 200'000);
            if (half < 160 * kMs) CHECK(worst_ns(reading, played) <= 3 * kMs);
        }
    }
}

// Only edges a second apart: a period that explains them is as good as another, and each look may find a better one.
void edges_that_leave_the_period_open_do_not_fix_it() {
    for (int64_t phase = 0; phase < 20 * kMs; phase += 1'300'000) {
        Reading reading{20 * kMs, phase};
        const auto edges = wave(20 * kMs, phase, 500 * kMs);
        reading.value = [&](int64_t refresh) { return refresh < 1500 ? edges(refresh) : static_cast<double>(refresh); };
        const Played played = play(reading, 30 * kSecond);
        CHECK(std::abs(played.learned_ns - 20 * kMs) < 200'000);
    }
}

// A look takes 800 reads: those that tell nothing get rare.
void looks_that_leave_the_period_open_get_rare() {
    for (const int64_t half : {330 * kMs, 500 * kMs, 1000 * kMs}) {
        const Reading reading{20 * kMs, 7 * kMs, wave(20 * kMs, 7 * kMs, half)};
        CHECK(play(reading, 600 * kSecond).reads < 600 * 50 * 3 / 2);
    }
    const Reading slow{100 * kMs, 41 * kMs, [](int64_t refresh) { return static_cast<double>(refresh / 7); }};
    CHECK(play(slow, 600 * kSecond).reads < 600 * 10 * 3);
}

void a_value_that_changes_within_a_period_contradicts_it() {
    for (int64_t phase = 0; phase < 20 * kMs; phase += 1'300'000) {
        Reading reading{20 * kMs, phase};
        reading.value = [](int64_t refresh) { return static_cast<double>(refresh < 600 ? refresh / 6 : refresh); };
        CHECK(std::abs(play(reading, 4 * kSecond).learned_ns - 20 * kMs) < 200'000);
    }
}

void a_refresh_out_of_its_time_misleads_nothing() {
    for (int64_t early = 100; early < 120; ++early) {
        const Reading reading{100 * kMs, 41 * kMs, [](int64_t refresh) { return static_cast<double>(refresh); }, 0,
                              early};
        const Played played = play(reading, 60 * kSecond);
        CHECK(std::abs(played.learned_ns - 100 * kMs) < 100'000);
        CHECK(worst_ns(reading, played) <= 3 * kMs);
    }
}

void stamps_never_go_back() {
    const Reading reading{100 * kMs, 99 * kMs, [](int64_t refresh) { return static_cast<double>(refresh % 3); },
                          60 * kMs};
    const Played played = play(reading, 300 * kSecond);
    for (size_t i = 1; i < played.stamps_ns.size(); ++i) CHECK(played.stamps_ns[i] > played.stamps_ns[i - 1]);
}

}  // namespace

int main() {
    RUN(every_period_and_phase_is_learned);
    RUN(late_reads_still_tell_which_refresh_it_is);
    RUN(a_value_that_stays_is_still_given_each_period);
    RUN(a_value_goes_with_its_refresh);
    RUN(a_phase_that_was_hidden_is_found_at_the_first_change);
    RUN(edges_of_a_load_are_no_refreshes_in_a_row);
    RUN(edges_that_leave_the_period_open_do_not_fix_it);
    RUN(looks_that_leave_the_period_open_get_rare);
    RUN(a_value_that_changes_within_a_period_contradicts_it);
    RUN(a_refresh_out_of_its_time_misleads_nothing);
    RUN(stamps_never_go_back);
}
