// Marks and events against the fake driver.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "../marks.hpp"
#include "check.hpp"
#include "fake_driver.hpp"

namespace {

using namespace energy;
using fake::kSecond;

constexpr int64_t kMs = 1'000'000;
constexpr Cuda::Stream kStream = nullptr;

int first_context, other_context;

struct Rig {
    explicit Rig(bool real_time = false, size_t capacity = MarkLog::kMarks, size_t events = MarkLog::kEvents) {
        fake::reset(real_time);
        fake::set_context(&first_context);
        clock = Clock::simulated(FAKE_DRIVER);
        cuda = std::make_shared<Cuda>(FAKE_DRIVER);
        log = std::make_unique<MarkLog>(clock, cuda, capacity, events);
    }

    void mark(uint16_t code = 1) { log->mark(code, false, kStream, 8, 512); }

    std::shared_ptr<Clock> clock;
    std::shared_ptr<Cuda> cuda;
    std::unique_ptr<MarkLog> log;
};

void run_ahead_is_timed_when_it_ends() {
    Rig rig;
    const int64_t start = rig.clock->now_ns();
    for (int i = 0; i < 10; ++i) {  // queued 1 ms apart, 10 ms of work each: the queue grows
        fake::set_queue((i + 1) * 10 * kMs - i * kMs);
        rig.mark();
        rig.log->mark(2, true, std::nullopt, -1, -1);
        fake::advance(kMs);
    }
    CHECK(rig.log->resolve() == 18);  // at 10 ms the first is done
    CHECK(rig.log->drain().size() == 2);
    fake::advance(45 * kMs);
    CHECK(rig.log->resolve() == 10);
    fake::advance(kSecond);
    CHECK(rig.log->resolve() == 0);
    const auto marks = rig.log->drain();
    CHECK(marks.size() == 18);
    for (size_t i = 0; i < marks.size(); i += 2) {
        const auto n = static_cast<int64_t>(i / 2 + 1);
        CHECK(marks[i].code == 1 && marks[i].begin == 0 && marks[i].samples == 8 && marks[i].tokens == 512);
        CHECK(marks[i].host_ns == start + n * kMs);
        CHECK(std::abs(marks[i].gpu_ns - (start + (n + 1) * 10 * kMs)) < 1000);
        CHECK(marks[i + 1].code == 2 && marks[i + 1].begin == 1 && marks[i + 1].gpu_ns == -1);
    }
    CHECK(rig.log->stats().events == 10 && rig.log->stats().event_misses == 0);
}

void few_queries_find_how_far_the_device_is() {
    Rig rig;
    for (int i = 0; i < 64; ++i) rig.mark();
    rig.log->resolve();
    for (int i = 0; i < 128; ++i) {
        fake::set_queue((i + 1) * kMs);
        rig.mark();
    }
    const int before = fake::queries();
    fake::advance(100 * kMs);
    CHECK(rig.log->resolve() == 28);
    CHECK(fake::queries() - before < 20);
}

void a_span_right_after_one_of_its_kind_needs_no_event() {
    Rig rig;
    CHECK(rig.log->wants_event(1));  // the first of all
    rig.mark(1);
    fake::advance(MarkLog::kApartNs);
    CHECK(!rig.log->wants_event(1) && rig.log->wants_event(2));
    rig.log->mark(3, true, kStream, -1, -1);  // a beginning is no end
    CHECK(!rig.log->wants_event(1));
    fake::advance(1);
    CHECK(rig.log->wants_event(1));
    fake::set_capturing(true);
    rig.mark(1);  // without an event
    CHECK(rig.log->wants_event(1));
    fake::set_capturing(false);
    rig.mark(1);
    CHECK(!rig.log->wants_event(1));
    CHECK(!MarkLog(rig.clock, std::shared_ptr<Cuda>(), 16, 16).wants_event(1));
}

void references_are_renewed() {
    Rig rig;
    for (int i = 0; i < 100; ++i) {
        fake::set_queue(5 * kMs);
        const int64_t now = rig.clock->now_ns();
        rig.mark();
        fake::advance(7 * kSecond);
        rig.log->resolve();
        const auto marks = rig.log->drain();
        CHECK(marks.size() == 1 && std::abs(marks[0].gpu_ns - now - 5 * kMs) < 2000);
    }
}

void an_empty_pool_marks_without_events_and_grows() {
    Rig rig(false, 8192, 600);
    fake::set_queue(kMs);
    for (int i = 0; i < 300; ++i) rig.mark();
    CHECK(rig.log->stats().events == 256 && rig.log->stats().event_misses == 44);
    fake::advance(kSecond);
    CHECK(rig.log->resolve() == 0);
    for (int i = 0; i < 400; ++i) rig.mark();
    CHECK(rig.log->stats().event_misses == 44);
    fake::advance(kSecond);
    rig.log->resolve();
    for (int i = 0; i < 2000; ++i) rig.mark();
    CHECK(rig.log->stats().events <= 256 + 400 + 600);
    fake::advance(kSecond);
    rig.log->resolve();
    CHECK(rig.log->drain().size() == 2700);
    CHECK(fake::events() <= 600 + 4);
}

void a_capture_gets_no_event() {
    Rig rig;
    fake::set_capturing(true);
    rig.mark();
    CHECK(rig.log->stats().events == 0 && fake::events() == 0);
    fake::set_capturing(false);
    rig.mark();
    rig.log->resolve();
    const auto marks = rig.log->drain();
    CHECK(marks.size() == 2 && marks[0].gpu_ns == -1 && marks[1].gpu_ns >= marks[1].host_ns);
}

void only_the_first_context_has_events() {
    Rig rig;
    fake::set_context(nullptr);
    rig.mark();
    fake::set_context(&first_context);
    rig.mark();
    fake::set_context(&other_context);
    rig.mark();
    rig.log->resolve();
    void* now = nullptr;
    CHECK(rig.cuda->get_context(&now) == 0 && now == &other_context);  // resolving leaves the caller's context alone
    const auto marks = rig.log->drain();
    CHECK(marks[0].gpu_ns == -1 && marks[1].gpu_ns != -1 && marks[2].gpu_ns == -1);
    CHECK(rig.log->stats().event_misses == 2);
}

void a_cuda_error_ends_events_but_not_marks() {
    Rig rig;
    fake::set_queue(kSecond);
    rig.mark();
    CHECK(rig.log->resolve() == 1);
    fake::fail_cuda(700);
    CHECK(rig.log->resolve() == 0);
    rig.mark();
    CHECK(rig.log->resolve() == 0);
    const auto marks = rig.log->drain();
    CHECK(marks.size() == 2 && marks[0].gpu_ns == -1 && marks[1].gpu_ns == -1);
    CHECK(rig.log->stats().last_error == "cuEventQuery: CUDA error (700)");
}

void a_full_log_drops_and_counts() {
    Rig rig(false, 64, 256);
    for (int i = 0; i < 100; ++i) rig.mark();
    CHECK(rig.log->stats().dropped == 36);
    rig.log->resolve();
    for (int i = 0; i < 1000; ++i) {
        rig.mark();
        rig.log->resolve();
    }
    CHECK(rig.log->drain().size() == 64);  // nobody drained: memory stays as it is
    rig.log->resolve();
    CHECK(rig.log->drain().size() == 64);
    const MarkStats stats = rig.log->stats();
    CHECK(stats.marks == 1100 && stats.dropped == 1100 - 3 * 64);
}

void marking_and_resolving_share_the_work() {
    Rig rig(true, 1 << 16, 512);
    constexpr size_t kMarks = 20'000;
    std::thread marker([&rig] {
        fake::set_context(&first_context);
        fake::set_queue(50'000);
        for (size_t i = 0; i < kMarks; ++i) {
            rig.mark(static_cast<uint16_t>(i));
            if (i % 100 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
    });
    size_t received = 0;
    uint16_t expected = 0;
    while (received < kMarks) {
        rig.log->resolve();
        for (const Mark& mark : rig.log->drain()) {
            CHECK(mark.code == expected++);
            CHECK(mark.gpu_ns == -1 || mark.gpu_ns >= mark.host_ns);
            ++received;
        }
        rig.log->stats();
    }
    marker.join();
    CHECK(rig.log->stats().dropped == 0 && rig.log->stats().events > kMarks / 100);
}

void a_forked_child_marks_nothing() {
    Rig rig;
    rig.mark();
    const pid_t child = fork();
    if (child == 0) {
        rig.mark();
        rig.log->mark_at(1, true, 5);
        const bool quiet = rig.log->resolve() == 0 && rig.log->drain().empty() && rig.log->stats().marks == 0;
        rig.log.reset();
        _exit(quiet && fake::events() >= 64 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    rig.log->resolve();
    CHECK(rig.log->drain().size() == 1);
}

void without_cuda_marks_are_host_only() {
    fake::reset(false);
    MarkLog log(Clock::simulated(FAKE_DRIVER), std::shared_ptr<Cuda>(), 16, 16);
    log.mark(3, true, kStream, -1, -1);
    log.mark_at(4, false, 77);
    CHECK(log.resolve() == 0);
    const auto marks = log.drain();
    CHECK(marks.size() == 2 && marks[0].gpu_ns == -1 && marks[1].host_ns == 77);
    CHECK(log.stats().event_misses == 0);
}

void every_event_is_destroyed() {
    const int before = fake::events();  // a dead pool leaves its own
    {
        Rig rig;
        for (int i = 0; i < 1000; ++i) {
            rig.mark();
            rig.log->resolve();
        }
        CHECK(fake::events() > before);
    }
    CHECK(fake::events() == before);
}

}  // namespace

void cuda_is_opened_once_the_process_has_loaded_it() {
    const Rig rig;  // has loaded it
    MarkLog used(rig.clock, std::string(FAKE_DRIVER), 16, 16),
        unused(rig.clock, std::string("libnowhere.so.1"), 16, 16);
    for (MarkLog* log : {&used, &unused}) {
        log->mark(1, false, std::nullopt, -1, -1);
        CHECK(log->stats().events == 0);
        log->mark(1, false, kStream, -1, -1);
    }
    CHECK(used.stats().events == 1 && unused.stats().events == 0);
    CHECK(used.wants_event(2) && !used.wants_event(1) && !unused.wants_event(2));
    fake::advance(kSecond);
    CHECK(used.resolve() == 0 && unused.resolve() == 0);
    CHECK(used.drain()[1].gpu_ns > 0 && unused.drain()[1].gpu_ns == -1);
}

int main() {
    RUN(run_ahead_is_timed_when_it_ends);
    RUN(few_queries_find_how_far_the_device_is);
    RUN(a_span_right_after_one_of_its_kind_needs_no_event);
    RUN(references_are_renewed);
    RUN(an_empty_pool_marks_without_events_and_grows);
    RUN(a_capture_gets_no_event);
    RUN(only_the_first_context_has_events);
    RUN(a_cuda_error_ends_events_but_not_marks);
    RUN(a_full_log_drops_and_counts);
    RUN(marking_and_resolving_share_the_work);
    RUN(a_forked_child_marks_nothing);
    RUN(without_cuda_marks_are_host_only);
    RUN(every_event_is_destroyed);
    RUN(cuda_is_opened_once_the_process_has_loaded_it);
}
