// The search for a refresh against counters that are arithmetic: every phase, reads that take as long as they do on an
// H200, late reads, and counters that are not what the search expects.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "../edge_search.hpp"
#include "check.hpp"

namespace {

using namespace energy;

constexpr int64_t kMs = 1'000'000;

struct Found {
    std::optional<CounterReading> edge;
    int reads = 0;
    int64_t duration_ns = 0;
};

class Counter {
  public:
    explicit Counter(uint64_t seed) : random_(seed), phase_ns_(within(kRefreshNs)) {}

    // The values of a counter, by the instant at which it is looked at.
    std::function<double(int64_t)> value = [this](int64_t t_ns) { return static_cast<double>(refreshes(t_ns)); };
    int64_t late_ns = 0;  // at most

    int64_t refreshes(int64_t t_ns) const { return (t_ns - phase_ns_ + 100 * kRefreshNs) / kRefreshNs; }
    int64_t refresh_ns(int64_t before_ns) const { return (refreshes(before_ns) - 100) * kRefreshNs + phase_ns_; }

    Found search() {
        EdgeSearch search;
        Found found;
        const int64_t start = within(kRefreshNs);
        int64_t now = start;
        while (!search.done()) {
            now = std::max(now, search.next_ns()) + within(late_ns);
            const auto cost = static_cast<int64_t>(3e6 * std::exp(0.72 * std::normal_distribution<double>()(random_)));
            const int64_t before = now;
            now += std::min(cost, 40 * kMs);
            search.feed({before, now, value(before + within(now - before)), 0});
            ++found.reads;
        }
        found.edge = search.edge();
        found.duration_ns = now - start;
        return found;
    }

  private:
    int64_t within(int64_t most) { return std::uniform_int_distribution<int64_t>(0, most)(random_); }

    std::mt19937_64 random_;
    int64_t phase_ns_;
};

// Whether the bracket holds a refresh, and the reading the value that the counter came to there.
bool is_true(const Counter& counter, const CounterReading& edge) {
    const int64_t refresh = counter.refresh_ns(edge.after_ns);
    return edge.edge == 1 && edge.before_ns <= refresh && edge.energy_j == counter.value(refresh);
}

int64_t width_ns(const Found& found) { return found.edge->after_ns - found.edge->before_ns; }

void few_reads_find_a_narrow_bracket() {
    std::vector<int> reads;
    int narrow = 0, sum = 0;
    int64_t duration_ns = 0;
    constexpr int kSearches = 5000;
    for (int seed = 0; seed < kSearches; ++seed) {
        Counter counter(static_cast<uint64_t>(seed));
        const Found found = counter.search();
        CHECK(found.edge && is_true(counter, *found.edge));
        CHECK(found.reads <= 12);
        narrow += width_ns(found) <= 10 * kMs;
        reads.push_back(found.reads);
        sum += found.reads;
        duration_ns += found.duration_ns;
    }
    std::nth_element(reads.begin(), reads.begin() + kSearches / 2, reads.end());
    // One read to begin with, four to halve 100 ms to less than 10, one where a read took long.
    CHECK(reads[kSearches / 2] <= 6);
    CHECK(2 * sum < 13 * kSearches);
    CHECK(narrow > kSearches * 99 / 100);
    // Half a period until the first refresh, and one for each that the search goes on to.
    CHECK(duration_ns / kSearches < 300 * kMs);
}

void late_reads_tell_less_and_nothing_wrong() {
    for (const int64_t late_ms : {5, 30, 90, 300}) {
        int found_any = 0;
        for (int seed = 0; seed < 1000; ++seed) {
            Counter counter(static_cast<uint64_t>(seed));
            counter.late_ns = late_ms * kMs;
            const Found found = counter.search();
            CHECK(found.reads <= 40);
            CHECK(!found.edge || is_true(counter, *found.edge));
            found_any += found.edge.has_value();
        }
        CHECK(found_any >= (late_ms <= 30 ? 1000 : late_ms <= 90 ? 950 : 0));
    }
}

void a_counter_that_stands_still_is_given_up() {
    for (int seed = 0; seed < 1000; ++seed) {
        Counter counter(static_cast<uint64_t>(seed));
        counter.value = [](int64_t) { return 5.0; };
        const Found found = counter.search();
        CHECK(!found.edge && found.reads <= 40 && found.duration_ns < 600 * kMs);
    }
}

void a_slower_counter_has_no_edge() {
    int found_any = 0;
    for (int seed = 0; seed < 1000; ++seed) {
        Counter counter(static_cast<uint64_t>(seed));
        counter.value = [](int64_t t_ns) { return static_cast<double>(t_ns / (10 * kRefreshNs)); };
        const Found found = counter.search();
        CHECK(found.reads <= 40);
        found_any += found.edge.has_value();
    }
    CHECK(found_any == 0);
}

// A refresh that moves contradicts the bracket: the search starts over, once.
void a_jump_of_the_phase_is_survived() {
    int found_any = 0;
    for (int seed = 0; seed < 1000; ++seed) {
        Counter counter(static_cast<uint64_t>(seed));
        const int64_t jump_ns = 250 * kMs;
        counter.value = [&counter](int64_t t_ns) {
            return static_cast<double>(counter.refreshes(t_ns > jump_ns ? t_ns + 37 * kMs : t_ns));
        };
        const Found found = counter.search();
        CHECK(found.reads <= 40);
        found_any += found.edge.has_value();
    }
    CHECK(found_any == 1000);
}

}  // namespace

int main() {
    RUN(few_reads_find_a_narrow_bracket);
    RUN(late_reads_tell_less_and_nothing_wrong);
    RUN(a_counter_that_stands_still_is_given_up);
    RUN(a_slower_counter_has_no_edge);
    RUN(a_jump_of_the_phase_is_survived);
}
