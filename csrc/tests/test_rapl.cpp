// Counters of the CPU made of files, read one by one and by a sampler that has neither devices nor NVML.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "../error.hpp"
#include "../rapl.hpp"
#include "../sampler.hpp"
#include "check.hpp"
#include "fake_driver.hpp"

namespace {

using namespace energy;
using fake::kSecond;

class File {
  public:
    explicit File(const std::string& text) {
        fd_ = mkstemp(path_);
        CHECK(fd_ >= 0);
        write(text);
    }
    ~File() {
        close(fd_);
        unlink(path_);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    void write(const std::string& text) const {
        CHECK(pwrite(fd_, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
        CHECK(ftruncate(fd_, static_cast<off_t>(text.size())) == 0);
    }
    std::string path() const { return path_; }

  private:
    char path_[32] = "/tmp/energy-rapl-XXXXXX";
    int fd_ = -1;
};

template <class Call>
int error_of(Call call) {
    try {
        call();
    } catch (const CounterError& error) {
        return error.error();
    }
    return 0;
}

std::unique_ptr<Sampler> sampler_of(const std::shared_ptr<Clock>& clock, CpuCounters counters,
                                    int64_t drain_period_ns = kSecond) {
    return std::make_unique<Sampler>(nullptr, std::vector<Target>{}, clock, nullptr,
                                     SamplerOptions{drain_period_ns, 10 * kSecond, 16}, std::move(counters));
}

void a_file_is_read_anew_each_time() {
    const File file("262143328850\n");
    const auto counter = RaplCounter::file(file.path());
    CHECK(counter->read() == 262143328850);
    file.write("7\n");
    CHECK(counter->read() == 7);
    file.write("18446744073709551615");
    CHECK(counter->read() == UINT64_MAX);
}

void what_is_no_count_is_an_error() {
    const File file("1\n");
    const auto counter = RaplCounter::file(file.path());
    for (const char* text : {"", "\n", "12 apples\n", "-1\n", "18446744073709551616\n"}) {
        file.write(text);
        CHECK(error_of([&] { counter->read(); }) == EBADMSG);
    }
    file.write("2\n");
    CHECK(counter->read() == 2);
    CHECK(error_of([&] { RaplCounter::file(file.path() + "/none"); }) == ENOTDIR);
    CHECK(error_of([&] { RaplCounter::file("/nowhere"); }) == ENOENT);
}

void a_file_that_went_is_opened_again() {
    const File file("5\n");
    const std::string link = file.path() + ".link";
    CHECK(symlink(file.path().c_str(), link.c_str()) == 0);
    const auto counter = RaplCounter::file(link);
    CHECK(unlink(link.c_str()) == 0);
    file.write("");
    CHECK(error_of([&] { counter->read(); }) == EBADMSG);
    CHECK(error_of([&] { counter->read(); }) == ENOENT);
    file.write("6\n");
    CHECK(symlink(file.path().c_str(), link.c_str()) == 0);
    CHECK(counter->read() == 6);
    CHECK(unlink(link.c_str()) == 0);
}

void an_event_that_is_none_is_an_error() {
    CHECK(error_of([] { RaplCounter::perf(UINT32_MAX, 0, 0); }) != 0);
    CHECK(error_of([] { RaplCounter::perf(1, 0, 1 << 20); }) != 0);
}

void it_is_read_at_the_start_with_each_drain_and_on_request() {
    fake::reset(false);
    const auto clock = Clock::simulated(FAKE_DRIVER);
    const File file("1\n");
    const auto sampler = sampler_of(clock, {RaplCounter::file(file.path())});
    sampler->start(false);
    CHECK(sampler->cpu(0).size() == 1);
    for (int64_t next = clock->now_ns(), end = next + 10 * kSecond; next < end; next = sampler->tick(next)) {
        fake::advance(next - clock->now_ns());
    }
    const auto readings = sampler->cpu(0);
    CHECK(readings.size() == 10);
    for (const CpuReading& reading : readings) CHECK(reading.count == 1 && reading.before_ns <= reading.after_ns);
    file.write("2\n");
    sampler->read_counter();
    sampler->tick(clock->now_ns());
    const auto asked = sampler->cpu(0);
    CHECK(asked.size() == 1 && asked[0].count == 2 && asked[0].before_ns == clock->now_ns());
    sampler->tick(clock->now_ns());
    CHECK(sampler->cpu(0).empty());
    CHECK(!sampler->reads_pending() && sampler->take_errors().empty());
}

void a_failure_is_told_once_and_is_no_other_counters_matter() {
    fake::reset(false);
    const auto clock = Clock::simulated(FAKE_DRIVER);
    const File bad("1\n"), good("1\n");
    const auto sampler = sampler_of(clock, {RaplCounter::file(bad.path()), RaplCounter::file(good.path())});
    sampler->start(false);
    for (int round = 0; round < 2; ++round) {
        bad.write("");
        for (int i = 0; i < 3; ++i) {
            sampler->drain_now();
            sampler->tick(clock->now_ns());
        }
        const auto errors = sampler->take_errors();
        CHECK(errors.size() == 1 && errors[0].first == -1);
        CHECK(errors[0].second.find(bad.path()) != std::string::npos);
        bad.write("3\n");
        sampler->drain_now();
        sampler->tick(clock->now_ns());
    }
    CHECK(sampler->cpu(0).size() == 3 && sampler->cpu(1).size() == 9);
}

void nobody_who_drains_costs_readings_and_they_are_counted() {
    fake::reset(false);
    const File file("1\n");
    const auto sampler = sampler_of(Clock::simulated(FAKE_DRIVER), {RaplCounter::file(file.path())});
    sampler->start(false);
    for (int i = 0; i < 1030; ++i) {
        sampler->drain_now();
        sampler->tick(0);
    }
    CHECK(sampler->stats().dropped == 7);
    CHECK(sampler->cpu(0).size() == 1024);
}

void devices_need_nvml() {
    bool refused = false;
    try {
        Sampler(nullptr, {{fake::kUuid}}, Clock::monotonic(), nullptr, SamplerOptions());
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    CHECK(refused);
}

void a_thread_reads_what_another_writes() {
    const File file("100000000\n");
    const auto sampler = sampler_of(Clock::monotonic(), {RaplCounter::file(file.path())}, 2'000'000);
    sampler->start(true);
    uint64_t last = 0;
    size_t seen = 0;
    for (int i = 0; i < 100; ++i) {
        file.write(std::to_string(100000000 + i) + "\n");
        sampler->read_counter();
        sampler->wait_drained(std::chrono::seconds(5));
        for (const CpuReading& reading : sampler->cpu(0)) {
            CHECK(reading.count >= last);
            last = reading.count;
            ++seen;
        }
    }
    CHECK(seen >= 100);
    const pid_t child = fork();
    if (child == 0) _exit(sampler->cpu(0).empty() ? 0 : 1);
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    sampler->stop();
    sampler->start(true);  // restartable
    sampler->wait_drained(std::chrono::seconds(5));
    CHECK(!sampler->cpu(0).empty());
    sampler->stop();
    CHECK(sampler->take_errors().empty());
}

}  // namespace

int main() {
    RUN(a_file_is_read_anew_each_time);
    RUN(what_is_no_count_is_an_error);
    RUN(a_file_that_went_is_opened_again);
    RUN(an_event_that_is_none_is_an_error);
    RUN(it_is_read_at_the_start_with_each_drain_and_on_request);
    RUN(a_failure_is_told_once_and_is_no_other_counters_matter);
    RUN(nobody_who_drains_costs_readings_and_they_are_counted);
    RUN(devices_need_nvml);
    RUN(a_thread_reads_what_another_writes);
}
