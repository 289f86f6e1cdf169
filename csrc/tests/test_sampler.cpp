// The sampler against the fake driver, in virtual time where time matters and with its thread where threads matter.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "../error.hpp"
#include "../sampler.hpp"
#include "check.hpp"
#include "fake_driver.hpp"

namespace {

using namespace energy;
using fake::kSecond;

struct Rig {
    explicit Rig(bool real_time = false, size_t capacity = 1 << 18, PowerSource power = PowerSource::kSampleBuffer,
                 PowerSource second = PowerSource::kNone)
        : source(power), mean(second) {
        fake::reset(real_time);
        clock = Clock::simulated(FAKE_DRIVER);
        nvml = std::make_shared<Nvml>(FAKE_DRIVER);
        sampler = make(capacity);
    }

    std::unique_ptr<Sampler> make(size_t capacity, bool activity = true,
                                  std::shared_ptr<MarkLog> marks = nullptr) const {
        return std::make_unique<Sampler>(nvml, std::vector<Target>{{fake::kUuid, source, mean}}, clock, marks,
                                         SamplerOptions{kSecond, 10 * kSecond, capacity, activity});
    }

    // Ticks at its deadlines, as a thread would.
    void run(int64_t duration_ns) {
        const int64_t end = clock->now_ns() + duration_ns;
        while (next < end) {
            if (next > clock->now_ns()) fake::advance(next - clock->now_ns());
            next = sampler->tick(clock->now_ns());
        }
        if (end > clock->now_ns()) fake::advance(end - clock->now_ns());
    }

    const PowerSource source, mean;
    std::shared_ptr<Clock> clock;
    std::shared_ptr<Nvml> nvml;
    std::unique_ptr<Sampler> sampler;
    int64_t next = 0;
};

// Every 20 ms one sample, at the instant of the fake's grid, none twice.
void check_unbroken(const std::vector<PowerSample>& samples) {
    for (size_t i = 0; i < samples.size(); ++i) {
        CHECK(std::fabs(samples[i].power_w - fake::kPower) < 1e-9);
        CHECK(samples[i].t_ns % fake::kSamplePeriod == 0);
        CHECK(i == 0 || samples[i].t_ns - samples[i - 1].t_ns == fake::kSamplePeriod);
    }
}

void an_hour_in_virtual_time() {
    Rig rig;
    const int64_t start = rig.clock->now_ns();
    rig.sampler->start(false);
    rig.run(3600 * kSecond);
    const auto samples = rig.sampler->power(0);
    check_unbroken(samples);
    CHECK(samples.front().t_ns == start - 119 * fake::kSamplePeriod);  // what the driver held before the start
    CHECK(samples.back().t_ns > start + 3598 * kSecond);
    const auto readings = rig.sampler->counter(0);
    // One in 24 s, which is 8000 times the 3 ms that the fake takes for one; and those that find the refresh.
    CHECK(readings.size() >= 150 && readings.size() <= 160);
    const SamplerStats stats = rig.sampler->stats();
    CHECK(stats.drains >= 3599 && stats.drains <= 3602);
    CHECK(stats.dropped == 0 && stats.late_ticks == 0 && stats.lost_samples == 0);
    CHECK(stats.driver_call_s > 0.45 && stats.driver_call_s < 2);  // 150 readings of 3 ms, and more
    CHECK(rig.sampler->take_errors().empty());
}

void an_edge_is_bracketed() {
    Rig rig;
    rig.sampler->start(false);
    CHECK(rig.sampler->edge_pending() && rig.sampler->reads_pending());
    rig.run(kSecond / 20);
    CHECK(rig.sampler->edge_pending() && !rig.sampler->counter(0).empty());
    rig.sampler->find_edge();  // joins
    rig.run(kSecond * 3 / 4);
    CHECK(!rig.sampler->edge_pending() && !rig.sampler->reads_pending());
    CHECK(rig.sampler->stats().counter_reads <= 12);
    auto readings = rig.sampler->counter(0);  // what was read on the way, and last what was found
    CHECK(std::count_if(readings.begin(), readings.end(), [](const auto& reading) { return reading.edge == 1; }) == 1);
    const CounterReading edge = readings.back();
    const int64_t refresh = edge.after_ns / fake::kCounterPeriod * fake::kCounterPeriod;
    CHECK(edge.before_ns <= refresh && refresh <= edge.after_ns);
    CHECK(edge.after_ns - edge.before_ns <= kSecond / 100);
    CHECK(std::fabs(edge.energy_j - static_cast<double>(refresh) * 1e-9 * fake::kPower) < 1e-3);
    rig.run(10 * kSecond);
    readings = rig.sampler->counter(0);
    CHECK(readings.size() == 1 && readings[0].edge == 0);
    CHECK(std::abs(readings[0].before_ns % fake::kCounterPeriod - fake::kCounterPeriod / 2) < 5'000'000);
}

void a_search_blocks_no_tick() {
    Rig rig;
    rig.sampler->start(false);
    rig.sampler->tick(rig.clock->now_ns());
    const uint64_t reads = rig.sampler->stats().counter_reads;
    CHECK(reads == 1);
    rig.sampler->tick(rig.clock->now_ns());  // nothing is due
    CHECK(rig.sampler->stats().counter_reads == reads);
    rig.sampler->stop();
    CHECK(!rig.sampler->edge_pending() && !rig.sampler->reads_pending());
    rig.sampler->start(false);
    CHECK(rig.sampler->edge_pending());
}

void requested_readings_come_on_either_side_of_the_next_refresh() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(kSecond);
    rig.sampler->counter(0);
    const int64_t asked = rig.clock->now_ns();
    rig.sampler->read_counter();
    CHECK(rig.sampler->reads_pending() && !rig.sampler->edge_pending());
    rig.next = asked;
    rig.run(kSecond);
    CHECK(!rig.sampler->reads_pending());
    const auto readings = rig.sampler->counter(0);
    CHECK(readings.size() == 2 && readings[0].edge == 0 && readings[1].edge == 0);
    CHECK(readings[0].before_ns - asked < 5'000'000);
    CHECK(std::abs(readings[1].before_ns % fake::kCounterPeriod - fake::kCounterPeriod / 2) < 5'000'000);
    CHECK(readings[1].before_ns / fake::kCounterPeriod == asked / fake::kCounterPeriod + 1);
    rig.run(10 * kSecond);
    CHECK(rig.sampler->counter(0).size() == 1);  // the periodic one
}

void without_a_phase_three_readings_are_spread_over_a_period() {
    Rig rig;
    rig.sampler->start(false);
    const int64_t asked = rig.clock->now_ns();
    rig.sampler->read_counter();
    rig.run(kSecond / 5);
    const auto readings = rig.sampler->counter(0);
    for (const int64_t wanted : {0, 55, 110}) {
        CHECK(std::any_of(readings.begin(), readings.end(), [&](const CounterReading& reading) {
            const int64_t late = reading.before_ns - asked - wanted * 1'000'000;
            return reading.edge == 0 && 0 <= late && late < 5'000'000;
        }));
    }
}

void a_polled_reading_is_read_once_a_period() {
    Rig rig(false, 1 << 18, PowerSource::kUsage);
    rig.sampler->start(false);
    rig.run(600 * kSecond);
    const auto samples = rig.sampler->power(0);
    CHECK(samples.size() >= 600 * kSecond / fake::kPolledPeriod - 2);
    size_t off = 0;
    for (size_t i = 10; i < samples.size(); ++i) {
        const int64_t late = (samples[i].t_ns - fake::kPolledPhase) % fake::kPolledPeriod;
        if (std::min(late, fake::kPolledPeriod - late) > 5'000'000) ++off;
        CHECK(samples[i].t_ns - samples[i - 1].t_ns < fake::kPolledPeriod * 11 / 10);
    }
    CHECK(off == 0);
}

void a_polled_gpu_that_is_lost_comes_back() {
    Rig rig(false, 1 << 18, PowerSource::kUsage);
    rig.sampler->start(false);
    rig.run(5 * kSecond);
    fake::fail(fake::Call::power, abi::kGpuIsLost);
    rig.run(20 * kSecond);
    CHECK(rig.sampler->take_errors().size() == 1);
    fake::heal();
    rig.sampler->power(0);
    rig.run(40 * kSecond);
    CHECK(rig.sampler->power(0).size() > 100);
}

// Samples follow each other by the period of what they are polled from.
void check_period(const std::vector<PowerSample>& samples, int64_t period_ns) {
    for (size_t i = 10; i < samples.size(); ++i) {
        CHECK(std::abs(samples[i].t_ns - samples[i - 1].t_ns - period_ns) < period_ns / 10);
    }
}

void two_readings_are_polled_each_in_its_own_period() {
    Rig rig(false, 1 << 18, PowerSource::kUsage, PowerSource::kAverage);
    rig.sampler->start(false);
    rig.run(60 * kSecond);
    const auto power = rig.sampler->power(0), mean = rig.sampler->mean(0);
    CHECK(power.size() >= 60 * kSecond / fake::kPolledPeriod - 2);
    CHECK(mean.size() >= 60 * kSecond / fake::kAveragePeriod - 2);
    check_period(power, fake::kPolledPeriod);
    check_period(mean, fake::kAveragePeriod);
    CHECK(rig.sampler->take_errors().empty());
}

void a_second_reading_that_fails_leaves_the_first() {
    Rig rig(false, 1 << 18, PowerSource::kUsage, PowerSource::kAverage);
    rig.sampler->start(false);
    rig.run(5 * kSecond);
    fake::fail(fake::Call::average, abi::kNoPermission);
    rig.sampler->power(0);
    rig.run(10 * kSecond);
    rig.sampler->mean(0);
    CHECK(rig.sampler->power(0).size() >= 10 * kSecond / fake::kPolledPeriod - 2);
    CHECK(rig.sampler->take_errors().size() == 1);
    fake::heal();
    rig.run(20 * kSecond);
    CHECK(rig.sampler->mean(0).size() > 100);
}

void a_second_reading_comes_back_with_the_gpu() {
    Rig rig(false, 1 << 18, PowerSource::kUsage, PowerSource::kAverage);
    rig.sampler->start(false);
    rig.run(5 * kSecond);
    for (const auto call : {fake::Call::power, fake::Call::average}) fake::fail(call, abi::kGpuIsLost);
    rig.run(20 * kSecond);
    CHECK(rig.sampler->take_errors().size() == 2);
    fake::heal();
    rig.sampler->power(0);
    rig.sampler->mean(0);
    rig.run(40 * kSecond);
    CHECK(rig.sampler->power(0).size() > 100 && rig.sampler->mean(0).size() > 60);
}

void without_a_source_only_the_counter_is_read() {
    Rig rig(false, 1 << 18, PowerSource::kNone);
    rig.sampler->start(false);
    rig.run(60 * kSecond);
    CHECK(rig.sampler->power(0).empty() && rig.sampler->mean(0).empty() && rig.sampler->counter(0).size() >= 6);
    CHECK(rig.sampler->stats().drains >= 59);  // what wakes the collector
}

void an_error_ends_what_was_asked_for() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(kSecond / 20);
    rig.sampler->read_counter();
    fake::fail(fake::Call::counter, abi::kGpuIsLost);
    rig.sampler->tick(rig.clock->now_ns());
    CHECK(!rig.sampler->edge_pending() && !rig.sampler->reads_pending());
    CHECK(rig.sampler->take_errors().size() == 1);
    rig.sampler->find_edge();  // refused: the counter pauses
    rig.sampler->read_counter();
    rig.sampler->tick(rig.clock->now_ns());
    CHECK(!rig.sampler->reads_pending());
    fake::heal();
    rig.run(2 * kSecond);
    rig.sampler->counter(0);
    rig.sampler->find_edge();
    rig.run(2 * kSecond);
    CHECK(rig.sampler->counter(0).back().edge == 1);
}

void searches_of_several_devices_interleave() {
    Rig rig;
    rig.sampler = std::make_unique<Sampler>(rig.nvml, std::vector<Target>(3, {fake::kUuid}), rig.clock, nullptr,
                                            SamplerOptions());
    rig.sampler->start(false);
    rig.run(kSecond);
    CHECK(!rig.sampler->edge_pending());
    for (size_t i = 0; i < 3; ++i) {
        const auto readings = rig.sampler->counter(i);
        CHECK(readings.size() >= 2 && readings.front().edge == 0 && readings.back().edge == 1);
        const int64_t refresh = readings.back().after_ns / fake::kCounterPeriod * fake::kCounterPeriod;
        CHECK(readings.back().before_ns <= refresh);
    }
}

void nothing_newer_is_no_error() {
    Rig rig;
    rig.sampler->start(false);
    rig.sampler->tick(rig.clock->now_ns());
    for (int i = 0; i < 10; ++i) {  // the clock stands still
        rig.sampler->drain_now();
        rig.sampler->tick(rig.clock->now_ns());
        CHECK(rig.sampler->power(0).empty() == (i > 0));
    }
    CHECK(rig.sampler->take_errors().empty());
}

void a_stepped_wall_clock_starves_nothing() {
    for (const int64_t step : {-3600 * kSecond, 3600 * kSecond, -kSecond / 2, kSecond / 2}) {
        Rig rig;
        rig.sampler->start(false);
        rig.run(10 * kSecond);
        rig.sampler->drain_now();
        rig.sampler->tick(rig.clock->now_ns());
        fake::step_wall_clock(step);
        const int64_t stepped = rig.clock->now_ns();
        rig.run(10 * kSecond);
        const auto samples = rig.sampler->power(0);
        check_unbroken(samples);
        CHECK(samples.back().t_ns > stepped + 8 * kSecond);
        CHECK(rig.sampler->stats().lost_samples == 0);
    }
}

void a_small_step_shifts_no_sample() {
    for (const int64_t step : {kSecond / 8, -kSecond / 8, 3 * kSecond / 2, -3 * kSecond / 2, 20 * kSecond,
                               -20 * kSecond, kSecond / 100, -kSecond / 100}) {
        Rig rig;
        rig.sampler->start(false);
        rig.run(10 * kSecond + kSecond / 2);
        fake::step_wall_clock(step);  // half a second after a drain, half a second before the next
        const int64_t stepped = rig.clock->now_ns();
        rig.run(10 * kSecond);
        const auto samples = rig.sampler->power(0);
        for (const PowerSample& sample : samples) CHECK(sample.t_ns % fake::kSamplePeriod == 0);
        CHECK(samples.back().t_ns > stepped + 8 * kSecond);
        const auto whole =
            static_cast<uint64_t>((samples.back().t_ns - samples.front().t_ns) / fake::kSamplePeriod) + 1;
        CHECK(samples.size() + 125 > whole);
        if (std::abs(step) > kSecond / 10) check_unbroken(samples);
    }
}

void a_late_drain_counts_what_was_overwritten() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(3 * kSecond);
    fake::advance(10 * kSecond);
    rig.next = rig.sampler->tick(rig.clock->now_ns());
    rig.run(2 * kSecond);
    const auto stats = rig.sampler->stats();
    const auto samples = rig.sampler->power(0);
    const auto span = samples.back().t_ns - samples.front().t_ns;
    CHECK(stats.lost_samples + samples.size() == static_cast<uint64_t>(span / fake::kSamplePeriod) + 1);
    CHECK(stats.lost_samples > 300);
    CHECK(stats.late_ticks == 1);
}

void a_lost_gpu_comes_back() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(5 * kSecond);
    for (const auto call : {fake::Call::samples, fake::Call::counter, fake::Call::handle}) {
        fake::fail(call, abi::kGpuIsLost);
    }
    const uint64_t reads = rig.sampler->stats().counter_reads;
    rig.run(60 * kSecond);
    auto errors = rig.sampler->take_errors();
    CHECK(errors.size() == 2);  // one per lane, not one per try
    CHECK(errors[0].first == 0 && errors[0].second == "nvmlDeviceGetSamples: GPU is lost (15)");
    CHECK(rig.sampler->take_errors().empty());
    CHECK(rig.sampler->stats().counter_reads - reads < 10);  // backs off
    rig.sampler->power(0);
    rig.sampler->counter(0);
    fake::heal();
    rig.run(40 * kSecond);
    check_unbroken(rig.sampler->power(0));
    CHECK(rig.sampler->counter(0).size() >= 1);
    CHECK(rig.sampler->take_errors().empty());
}

void a_gpu_that_is_back_is_noticed_within_5_s() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(kSecond);
    for (const auto call : {fake::Call::samples, fake::Call::counter, fake::Call::handle}) {
        fake::fail(call, abi::kGpuIsLost);
    }
    rig.run(200 * kSecond);
    rig.sampler->power(0);
    rig.sampler->counter(0);
    fake::heal();
    rig.run(5 * kSecond);
    CHECK(!rig.sampler->power(0).empty() && !rig.sampler->counter(0).empty());
}

void a_reading_asked_for_is_tried_while_the_counter_pauses() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(kSecond);
    fake::fail(fake::Call::counter, abi::kGpuIsLost);
    rig.run(40 * kSecond);
    fake::heal();
    rig.sampler->counter(0);
    rig.sampler->read_counter();
    rig.sampler->tick(rig.clock->now_ns());
    rig.sampler->tick(rig.clock->now_ns());
    CHECK(rig.sampler->counter(0).size() == 1);
}

void a_sensor_that_once_worked_is_tried_again() {
    for (const int code : {abi::kNotSupported, abi::kNoPermission}) {
        Rig rig;
        rig.sampler->start(false);
        rig.run(3 * kSecond);
        fake::fail(fake::Call::samples, code);
        rig.run(30 * kSecond);
        CHECK(rig.sampler->take_errors().size() == 1);
        rig.sampler->power(0);
        fake::heal();
        rig.run(6 * kSecond);
        CHECK(!rig.sampler->power(0).empty());
    }
}

void one_shutdown_too_many_is_made_good() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(3 * kSecond);
    rig.sampler->power(0);
    nvmlShutdown();
    rig.run(30 * kSecond);
    check_unbroken(rig.sampler->power(0));
    CHECK(rig.sampler->stats().lost_samples == 0);
    CHECK(fake::users() == 1);
    const auto errors = rig.sampler->take_errors();
    CHECK(errors.size() == 1 && errors[0].second.find("shut down by other code") != std::string::npos);
}

void what_can_never_work_is_asked_once() {
    Rig rig;
    fake::fail(fake::Call::counter, abi::kNotSupported);
    fake::fail(fake::Call::samples, abi::kNoPermission);
    rig.sampler->start(false);
    rig.run(100 * kSecond);
    CHECK(rig.sampler->stats().counter_reads == 1);
    CHECK(!rig.sampler->edge_pending());
    const auto errors = rig.sampler->take_errors();  // not supported is no error: probe() says so
    CHECK(errors.size() == 1 && errors[0].second == "nvmlDeviceGetSamples: failure (4)");
}

void state_is_read_once_a_second() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(10 * kSecond);
    const auto readings = rig.sampler->state(0);
    CHECK(readings.size() == 10);
    for (const StateReading& reading : readings) {
        CHECK(reading.sm_clock_mhz == fake::kClockMhz && reading.temperature_c == fake::kTemperature);
        CHECK(reading.requested_limit_w == fake::kLimit && std::isnan(reading.enforced_limit_w));
        CHECK(reading.utilisation == 0.5 && reading.clock_reasons == 4);
    }
    for (int i = 0; i < 10; ++i) {  // drains out of turn
        rig.sampler->drain_now();
        rig.sampler->tick(rig.clock->now_ns());
    }
    CHECK(rig.sampler->state(0).size() <= 1);
    const Capabilities found = rig.nvml->probe(fake::kUuid);
    CHECK(found.reasons.count("enforced_limit_w") == 1 && found.reasons.count("clock_reasons") == 0);
}

void each_field_of_the_state_has_its_own_pace() {
    for (const bool activity : {false, true}) {
        Rig rig;
        rig.sampler = rig.make(1 << 18, activity);
        fake::set_costs(10'000, 375'000);
        rig.sampler->start(false);
        rig.run(100 * kSecond);
        fake::set_limit(500);
        rig.run(200 * kSecond);
        const auto readings = rig.sampler->state(0);
        CHECK(readings.size() == 300 && fake::clock_reads() == 300);
        CHECK(fake::limit_reads() == (activity ? 300 : 20));  // 375 us of every 15 s are one in 40,000
        for (size_t i = 0; i < readings.size(); ++i) {
            CHECK(readings[i].sm_clock_mhz == fake::kClockMhz && readings[i].clock_reasons == 4);
            CHECK(readings[i].requested_limit_w == (i < (activity ? 100 : 105) ? fake::kLimit : 500));
        }
    }
}

void no_value_of_the_state_is_older_than_half_a_minute() {
    Rig rig;
    rig.sampler = rig.make(1 << 18, false);
    fake::set_costs(0, kSecond / 20);
    rig.sampler->start(false);
    for (int i = 0; i < 300; ++i) {
        fake::set_limit(i);
        rig.run(kSecond);
    }
    const auto readings = rig.sampler->state(0);
    CHECK(readings.size() == 300 && fake::limit_reads() == 10);
    for (size_t i = 0; i < readings.size(); ++i) {
        CHECK(readings[i].requested_limit_w + 30 > static_cast<double>(i));
    }
}

void a_field_that_is_dear_now_and_then_keeps_to_its_share() {
    Rig rig;
    rig.sampler = rig.make(1 << 18, false);
    fake::set_costs(10'000, 0);
    rig.sampler->start(false);
    int64_t cost_ns = 0, reads = 0;
    const int64_t start = rig.clock->now_ns();
    for (int i = 0; i < 3600; ++i) {
        const bool dear = fake::clock_reads() % 14 == 13;
        const int before = fake::clock_reads();
        fake::set_costs(dear ? 1'400'000 : 10'000, 0);
        rig.run(kSecond);
        if (fake::clock_reads() == before) continue;
        cost_ns += dear ? 1'400'000 : 10'000;
        ++reads;
    }
    CHECK(rig.clock->now_ns() - start < cost_ns * StateLane::kShare * 13 / 10);
    CHECK(cost_ns * StateLane::kShare < (rig.clock->now_ns() - start) * 11 / 10);
    CHECK(reads > 3600 / 6 && reads < 3600 / 3);
    fake::set_costs(10'000, 0);
    rig.run(300 * kSecond);  // forgotten
    const int before = fake::clock_reads();
    rig.run(60 * kSecond);
    CHECK(fake::clock_reads() == before + 60);
}

void a_field_that_comes_to_fail_does_not_keep_its_value() {
    Rig rig;
    rig.sampler = rig.make(1 << 18, false);
    rig.sampler->start(false);
    rig.run(5 * kSecond);
    fake::fail(fake::Call::clock, abi::kUnknown);
    rig.run(5 * kSecond);
    const auto readings = rig.sampler->state(0);
    CHECK(readings.size() == 10 && std::isnan(readings.back().sm_clock_mhz));
    CHECK(readings.front().sm_clock_mhz == fake::kClockMhz && readings.back().temperature_c == fake::kTemperature);
    CHECK(rig.sampler->take_errors().empty());
}

void a_field_that_fails_leaves_the_others() {
    for (const int code : {abi::kNotSupported, abi::kUnknown}) {
        Rig rig;
        fake::fail(fake::Call::clock, code);
        rig.sampler->start(false);
        rig.run(5 * kSecond);
        fake::heal();
        rig.run(5 * kSecond);
        const auto readings = rig.sampler->state(0);
        CHECK(readings.size() == 10);
        CHECK(std::isnan(readings.front().sm_clock_mhz) && readings.front().temperature_c == fake::kTemperature);
        CHECK(std::isnan(readings.back().sm_clock_mhz) == (code == abi::kNotSupported));  // asked for once
        CHECK(rig.sampler->take_errors().empty());
    }
}

void lanes_stop_and_go_on_with_the_gpu() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(5 * kSecond);
    CHECK(rig.sampler->state(0).size() == 5 && rig.sampler->activity(0).size() == 4);
    for (const auto call : {fake::Call::samples, fake::Call::clock, fake::Call::state, fake::Call::gpm}) {
        fake::fail(call, abi::kGpuIsLost);
    }
    rig.run(10 * kSecond);
    CHECK(rig.sampler->state(0).empty() && rig.sampler->activity(0).empty());
    CHECK(rig.sampler->take_errors().size() == 1);  // said once, not once a lane
    fake::heal();
    const int64_t back = rig.clock->now_ns();
    rig.run(20 * kSecond);
    CHECK(rig.sampler->state(0).size() > 5);
    const auto readings = rig.sampler->activity(0);
    CHECK(readings.size() > 5 && readings.front().start_ns > back);  // none over the gap
    CHECK(rig.sampler->take_errors().empty());
}

void a_lane_that_fails_alone_says_so() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(5 * kSecond);
    for (const auto call : {fake::Call::clock, fake::Call::state}) fake::fail(call, abi::kUnknown);
    fake::fail(fake::Call::gpm, abi::kNoPermission);
    rig.run(10 * kSecond);
    const auto errors = rig.sampler->take_errors();
    CHECK(errors.size() == 2);
    CHECK(errors[0].second == "nvmlDeviceGetClockInfo: failure (999)");
    CHECK(errors[1].second == "nvmlGpmSampleGet: failure (4)");
    fake::heal();
    rig.sampler->state(0);
    rig.sampler->activity(0);
    rig.run(20 * kSecond);
    CHECK(!rig.sampler->state(0).empty());  // what once worked is tried again
    CHECK(!rig.sampler->activity(0).empty());
    CHECK(rig.sampler->power(0).size() > 1500);
}

void activity_is_between_two_readings() {
    Rig rig;
    rig.sampler->start(false);
    rig.run(10 * kSecond);
    const auto readings = rig.sampler->activity(0);
    CHECK(readings.size() == 9);
    for (size_t i = 0; i < readings.size(); ++i) {
        CHECK(readings[i].sm == fake::kBusy && readings[i].tensor == fake::kBusy && readings[i].dram == fake::kBusy);
        CHECK(std::isnan(readings[i].occupancy));
        CHECK(readings[i].nvlink_rx_bytes_per_s == 10.0 * (1 << 30));
        CHECK(i == 0 || readings[i].start_ns == readings[i - 1].end_ns);
    }
    CHECK(fake::snapshots() == 2);
    rig.sampler->drain_now();  // too soon for a snapshot
    rig.sampler->tick(rig.clock->now_ns());
    rig.sampler->drain_now();
    rig.sampler->tick(rig.clock->now_ns());
    CHECK(rig.sampler->activity(0).size() <= 1);
    CHECK(rig.sampler->take_errors().empty());
}

void without_gpm_there_is_no_activity() {
    Rig rig;
    CHECK(rig.nvml->probe(fake::kUuid).activity);
    fake::fail(fake::Call::gpm, abi::kNotSupported);
    const Capabilities found = rig.nvml->probe(fake::kUuid);
    CHECK(!found.activity && found.reasons.at("activity") == "nvmlGpmQueryDeviceSupport: failure (3)");
    rig.sampler->start(false);
    rig.run(10 * kSecond);
    CHECK(rig.sampler->activity(0).empty() && rig.sampler->take_errors().empty());
    fake::heal();
    Sampler quiet(rig.nvml, {{fake::kUuid}}, rig.clock, nullptr, {});  // did not ask for it
    quiet.start(false);
    for (int i = 0; i < 5; ++i) {
        quiet.tick(rig.clock->now_ns());
        fake::advance(kSecond);
    }
    CHECK(quiet.activity(0).empty() && quiet.state(0).size() == 5 && fake::snapshots() == 0);
}

// Marks with an event each, evenly spaced, while the sampler ticks.
void mark_at_a_rate(Rig& rig, MarkLog& marks, int per_second, int64_t duration_ns) {
    const int64_t end = rig.clock->now_ns() + duration_ns;
    while (rig.clock->now_ns() < end) {
        marks.mark(1, false, Cuda::Stream{}, -1, -1);
        rig.run(kSecond / per_second);
        marks.drain();
    }
}

void few_marks_are_resolved_with_the_drains_alone() {
    Rig rig;
    int context = 0;
    fake::set_context(&context);
    const auto marks = std::make_shared<MarkLog>(rig.clock, std::make_shared<Cuda>(FAKE_DRIVER), 65536, 8192);
    rig.sampler = rig.make(1 << 18, false, marks);
    rig.sampler->start(false);
    rig.sampler->drain_every(2 * kSecond);
    mark_at_a_rate(rig, *marks, 20, 11 * kSecond);  // the reference has just been renewed
    const int before = fake::queries();
    mark_at_a_rate(rig, *marks, 20, 8 * kSecond);
    CHECK(fake::queries() - before == 4);  // each drain asks about the newest event alone
    const uint64_t drains = rig.sampler->stats().drains;
    rig.run(4 * kSecond);
    CHECK(rig.sampler->stats().drains > drains && marks->resolve() == 0);
    fake::set_context(nullptr);
}

void a_fast_loop_that_begins_at_once_loses_no_event() {
    for (int64_t begins = 0; begins < 2 * kSecond; begins += kSecond / 10) {  // at any time between two drains
        for (const int slow : {0, 10, 120, 400}) {
            Rig rig;
            int context = 0;
            fake::set_context(&context);
            const auto marks = std::make_shared<MarkLog>(rig.clock, std::make_shared<Cuda>(FAKE_DRIVER), 65536, 8192);
            rig.sampler = rig.make(1 << 18, false, marks);
            rig.sampler->start(false);
            rig.sampler->drain_every(2 * kSecond);
            if (slow > 0) mark_at_a_rate(rig, *marks, slow, 6 * kSecond);
            rig.run(begins);
            mark_at_a_rate(rig, *marks, slow > 0 ? 1250 : 420, 4 * kSecond);  // the first of all fill the pool
            CHECK(marks->stats().event_misses == 0);
            fake::set_context(nullptr);
        }
    }
}

void an_unknown_device_is_refused() {
    Rig rig;
    Sampler sampler(rig.nvml, {{"GPU-other"}}, rig.clock, nullptr, {});
    try {
        sampler.start(true);
        CHECK(false);
    } catch (const NvmlError& error) {
        CHECK(error.code() == abi::kNotFound);
    }
    sampler.stop();
}

void starts_and_stops_a_hundred_times() {
    Rig rig(true);
    for (int i = 0; i < 100; ++i) {
        rig.sampler->start(true);
        if (i % 3 == 0) rig.sampler->find_edge();
        if (i % 4 == 0) rig.sampler->read_counter();
        if (i % 5 == 0) {
            rig.sampler->drain_now();
            CHECK(rig.sampler->wait_drained(std::chrono::seconds(5)) > 0);
        }
        rig.sampler->stop();
        rig.sampler->stop();
    }
    const auto samples = rig.sampler->power(0);
    for (size_t i = 1; i < samples.size(); ++i) CHECK(samples[i].t_ns > samples[i - 1].t_ns);
    CHECK(rig.sampler->take_errors().empty());
    CHECK(rig.sampler->stats().thread_cpu_s > 0);
}

void readers_work_beside_the_thread() {
    Rig rig(true);
    Sampler fast(rig.nvml, {{fake::kUuid}}, rig.clock, nullptr, {kSecond / 1000, kSecond / 500, 64});
    rig.sampler->start(true);
    fast.start(true);  // two at once
    size_t samples = 0;
    for (int i = 0; i < 200; ++i) {
        fast.wait_drained(std::chrono::milliseconds(100));
        samples += fast.power(0).size() + fast.counter(0).size();
        samples += fast.state(0).size() + fast.activity(0).size();
        if (i % 20 == 0) fast.find_edge();
        if (i % 30 == 0) fast.read_counter();
        fast.reads_pending();
        fast.stats();
        fast.take_errors();
    }
    CHECK(samples > 0);
    CHECK(fast.stats().drains >= 100);
    rig.sampler->stop();
    fast.stop();
}

void a_drain_asked_for_is_waited_for() {
    Rig rig(true);
    rig.sampler->start(true);
    rig.sampler->wait_drained(std::chrono::seconds(5));
    const int64_t asked = rig.clock->now_ns();
    rig.sampler->drain_now();
    rig.sampler->wait_drained(std::chrono::seconds(5));
    CHECK(rig.clock->now_ns() - asked < kSecond / 2);
    CHECK(rig.sampler->power(0).back().t_ns > asked - 2 * fake::kSamplePeriod);
    std::thread stopper([&rig] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        rig.sampler->stop();
    });
    rig.sampler->wait_drained(std::chrono::seconds(60));  // ends at stop
    stopper.join();
}

void a_hanging_driver_does_not_hold_up_stop() {
    Rig rig(true);
    fake::hang(true);
    rig.sampler->start(true);
    CHECK(rig.sampler->wait_drained(std::chrono::milliseconds(100)) == 0);
    const int64_t before = rig.clock->now_ns();
    rig.sampler->stop();
    CHECK(rig.clock->now_ns() - before < 4 * kSecond);
    CHECK(rig.sampler->take_errors().size() == 1);
    fake::hang(false);
    rig.sampler->start(true);  // works again, with another thread
    rig.sampler->wait_drained(std::chrono::seconds(5));
    CHECK(!rig.sampler->power(0).empty());
    rig.sampler->stop();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // for the one that hung to go home
}

void a_forked_child_does_nothing() {
    Rig rig(true);
    rig.sampler->start(true);
    rig.sampler->wait_drained(std::chrono::seconds(5));
    const int users = fake::users();
    const pid_t child = fork();
    if (child == 0) {
        rig.sampler->find_edge();
        rig.sampler->read_counter();
        rig.sampler->drain_now();
        const bool quiet = rig.sampler->power(0).empty() && rig.sampler->counter(0).empty() &&
                           rig.sampler->wait_drained(std::chrono::seconds(60)) == 0 && !rig.sampler->reads_pending() &&
                           rig.sampler->take_errors().empty() && !rig.nvml->probe(fake::kUuid).power_samples;
        rig.sampler->stop();
        rig.sampler.reset();
        rig.nvml.reset();
        _exit(quiet && fake::users() == users ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(!rig.sampler->power(0).empty());  // the parent's goes on
    rig.sampler->stop();
}

void nothing_of_the_drivers_is_kept() { CHECK(fake::users() == 0 && fake::snapshots() == 0); }

}  // namespace

int main() {
    RUN(an_hour_in_virtual_time);
    RUN(an_edge_is_bracketed);
    RUN(a_search_blocks_no_tick);
    RUN(requested_readings_come_on_either_side_of_the_next_refresh);
    RUN(without_a_phase_three_readings_are_spread_over_a_period);
    RUN(a_polled_reading_is_read_once_a_period);
    RUN(a_polled_gpu_that_is_lost_comes_back);
    RUN(two_readings_are_polled_each_in_its_own_period);
    RUN(a_second_reading_that_fails_leaves_the_first);
    RUN(a_second_reading_comes_back_with_the_gpu);
    RUN(without_a_source_only_the_counter_is_read);
    RUN(an_error_ends_what_was_asked_for);
    RUN(searches_of_several_devices_interleave);
    RUN(nothing_newer_is_no_error);
    RUN(a_stepped_wall_clock_starves_nothing);
    RUN(a_small_step_shifts_no_sample);
    RUN(a_late_drain_counts_what_was_overwritten);
    RUN(a_lost_gpu_comes_back);
    RUN(a_gpu_that_is_back_is_noticed_within_5_s);
    RUN(a_reading_asked_for_is_tried_while_the_counter_pauses);
    RUN(a_sensor_that_once_worked_is_tried_again);
    RUN(one_shutdown_too_many_is_made_good);
    RUN(what_can_never_work_is_asked_once);
    RUN(state_is_read_once_a_second);
    RUN(each_field_of_the_state_has_its_own_pace);
    RUN(no_value_of_the_state_is_older_than_half_a_minute);
    RUN(a_field_that_is_dear_now_and_then_keeps_to_its_share);
    RUN(a_field_that_comes_to_fail_does_not_keep_its_value);
    RUN(a_field_that_fails_leaves_the_others);
    RUN(lanes_stop_and_go_on_with_the_gpu);
    RUN(a_lane_that_fails_alone_says_so);
    RUN(activity_is_between_two_readings);
    RUN(without_gpm_there_is_no_activity);
    RUN(few_marks_are_resolved_with_the_drains_alone);
    RUN(a_fast_loop_that_begins_at_once_loses_no_event);
    RUN(an_unknown_device_is_refused);
    RUN(starts_and_stops_a_hundred_times);
    RUN(readers_work_beside_the_thread);
    RUN(a_drain_asked_for_is_waited_for);
    RUN(a_forked_child_does_nothing);
    RUN(a_hanging_driver_does_not_hold_up_stop);
    RUN(nothing_of_the_drivers_is_kept);
}
