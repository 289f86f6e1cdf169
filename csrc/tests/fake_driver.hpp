// A driver of one GPU for the tests of csrc: 100 W for ever, a sample every 20 ms, a counter that refreshes every 100
// ms. One library is both NVML and libcuda, and has a clock that stands still between calls of advance().
#pragma once

#include <cstdint>

namespace fake {

constexpr const char* kUuid = "GPU-fake";
constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kSamplePeriod = 20'000'000;
constexpr int64_t kCounterPeriod = 100'000'000;
constexpr int64_t kCounterCost = 3'000'000;    // by which a read of the counter advances a virtual clock
constexpr int64_t kPolledPeriod = 70'000'000;  // of PowerUsage, which comes to another value each time
constexpr int64_t kPolledPhase = 37'000'000;
constexpr int64_t kAveragePeriod = 110'000'000;  // of the field of average power, which does, too
constexpr double kPower = 100;

constexpr double kClockMhz = 1980;
constexpr double kTemperature = 41;
constexpr double kLimit = 700;
constexpr double kBusy = 0.25;  // by GPM; 10 GiB/s go in and out by NVLink

// `state` are its other calls, `gpm` snapshots.
enum class Call { handle, samples, counter, power, average, clock, state, gpm };

// Heals everything. With `real_time` the clock is the machine's, and calls cost nothing.
void reset(bool real_time);
void advance(int64_t ns);
void step_wall_clock(int64_t ns);
void fail(Call call, int code);  // until heal()
void heal();
// What reads of the clock and of the requested limit take from now on, in virtual time.
void set_costs(int64_t clock_ns, int64_t limit_ns);
void set_limit(double watts);  // kLimit until then
int clock_reads();
int limit_reads();
void hang(bool on);  // reads of samples return only when this is off again
int snapshots();     // of GPM, allocated and not freed
int users();         // nvmlInit_v2 minus nvmlShutdown

void set_context(void* context);  // current on the calling thread
void set_queue(int64_t ns);       // work ahead of an event that is recorded from now on
void set_capturing(bool on);
void fail_cuda(int code);  // what cuEventQuery answers; 0 heals
int events();              // created and not destroyed
int queries();             // calls of cuEventQuery so far

}  // namespace fake

extern "C" int nvmlShutdown();  // also for the test of one shutdown too many
