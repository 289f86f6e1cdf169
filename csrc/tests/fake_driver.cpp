#include "fake_driver.hpp"

#include <atomic>
#include <chrono>
#include <cstring>
#include <ctime>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../nvml_abi.hpp"

namespace {

using namespace energy;

constexpr int64_t kEpoch = 1'700'000'000 * fake::kSecond;
constexpr int64_t kSamplesKept = 120;

struct WallStep {
    int64_t since_ns;
    int64_t offset_ns;
};

struct Event {
    std::atomic<int64_t> done_ns{0};
};

std::mutex mutex;  // guards these two
std::vector<WallStep> wall_steps;
std::unordered_map<void*, std::unique_ptr<Event>> all_events;  // those of a dead context belong to nobody else
std::atomic<int64_t> virtual_ns{0};
std::atomic<bool> real_time{false}, hanging{false}, capturing{false};
std::atomic<int> failures[8] = {};
std::atomic<int> gpm_samples{0}, nvml_users{0}, cuda_failure{0}, event_queries{0};
std::atomic<int64_t> queue_ns{0}, clock_cost_ns{0}, limit_cost_ns{0};
std::atomic<int> reads_of_clock{0}, reads_of_limit{0};
std::atomic<double> limit_w{fake::kLimit};
thread_local void* current_context = nullptr;

int64_t now() {
    if (!real_time) return virtual_ns;
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * fake::kSecond + t.tv_nsec;
}

int64_t wall_at(int64_t t_ns) {
    const std::lock_guard lock(mutex);
    int64_t offset = kEpoch;
    for (const WallStep& step : wall_steps) {
        if (step.since_ns <= t_ns) offset = step.offset_ns;
    }
    return t_ns + offset;
}

int outcome(fake::Call call) { return nvml_users > 0 ? failures[static_cast<int>(call)].load() : abi::kUninitialized; }

}  // namespace

namespace fake {

void reset(bool real) {
    const std::lock_guard lock(mutex);
    wall_steps.clear();
    virtual_ns = 1000 * kSecond;
    real_time = real;
    hanging = capturing = false;
    cuda_failure = 0;
    queue_ns = clock_cost_ns = limit_cost_ns = 0;
    reads_of_clock = reads_of_limit = 0;
    limit_w = kLimit;
    for (auto& failure : failures) failure = 0;
}

void advance(int64_t ns) { virtual_ns += ns; }

void step_wall_clock(int64_t ns) {
    const int64_t t = now();
    const int64_t offset = wall_at(t) - t + ns;
    const std::lock_guard lock(mutex);
    wall_steps.push_back({t, offset});
}

void fail(Call call, int code) { failures[static_cast<int>(call)] = code; }
void heal() {
    for (auto& failure : failures) failure = 0;
}
void set_costs(int64_t clock_ns, int64_t limit_ns) {
    clock_cost_ns = clock_ns;
    limit_cost_ns = limit_ns;
}
void set_limit(double watts) { limit_w = watts; }
int clock_reads() { return reads_of_clock; }
int limit_reads() { return reads_of_limit; }
void hang(bool on) { hanging = on; }
int snapshots() { return gpm_samples; }
int users() { return nvml_users; }
void set_context(void* context) { current_context = context; }
void set_queue(int64_t ns) { queue_ns = ns; }
void set_capturing(bool on) { capturing = on; }
void fail_cuda(int code) { cuda_failure = code; }
int events() {
    const std::lock_guard lock(mutex);
    return static_cast<int>(all_events.size());
}
int queries() { return event_queries; }

}  // namespace fake

extern "C" {

int64_t ep_sim_monotonic_ns() { return now(); }
int64_t ep_sim_wall_ns() { return wall_at(now()); }
const char* ep_sim_version() { return "fake"; }

int nvmlInit_v2() {
    ++nvml_users;
    return 0;
}

int nvmlShutdown() {
    --nvml_users;
    return 0;
}

const char* nvmlErrorString(int code) { return code == abi::kGpuIsLost ? "GPU is lost" : "failure"; }

int nvmlDeviceGetHandleByUUID(const char* uuid, abi::Device* device) {
    static int the_device;
    if (std::strcmp(uuid, fake::kUuid) != 0) return abi::kNotFound;
    *device = &the_device;
    return outcome(fake::Call::handle);
}

int nvmlDeviceGetTotalEnergyConsumption(abi::Device, unsigned long long* millijoules) {
    if (!real_time) virtual_ns += fake::kCounterCost;
    const int64_t refreshed = now() / fake::kCounterPeriod * fake::kCounterPeriod;
    *millijoules = static_cast<unsigned long long>(static_cast<double>(refreshed) * 1e-9 * fake::kPower * 1e3);
    return outcome(fake::Call::counter);
}

int nvmlDeviceGetPowerUsage(abi::Device, unsigned int* milliwatts) {
    const int64_t refreshes = (now() - fake::kPolledPhase) / fake::kPolledPeriod;
    *milliwatts = static_cast<unsigned int>(fake::kPower * 1e3) + static_cast<unsigned int>(refreshes % 7);
    return outcome(fake::Call::power);
}

int nvmlDeviceGetFieldValues(abi::Device, int, abi::FieldValue* field) {
    const bool average = field->field_id == abi::kPowerAverage;
    field->code = average ? outcome(fake::Call::average) : abi::kNotSupported;
    field->value_type = abi::kUnsignedInt;
    field->value.as_uint =
        static_cast<unsigned int>(fake::kPower * 1e3 + 1) + static_cast<unsigned int>(now() / fake::kAveragePeriod % 7);
    return abi::kSuccess;
}

int nvmlDeviceGetSamples(abi::Device, int, unsigned long long last_seen, int* type, unsigned int* count,
                         abi::Sample* samples) {
    while (hanging) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (const int code = outcome(fake::Call::samples); code != 0) return code;
    *type = abi::kUnsignedInt;
    const int64_t newest = now() / fake::kSamplePeriod;
    unsigned int found = 0;
    for (int64_t k = newest - kSamplesKept + 1; k <= newest; ++k) {
        const auto stamp = static_cast<unsigned long long>(wall_at(k * fake::kSamplePeriod) / 1000);
        if (stamp <= last_seen) continue;
        if (found == *count) return abi::kInsufficientSize;
        samples[found].time_stamp = stamp;
        samples[found].value.as_ullong = ~0ULL;  // only the low half means anything
        samples[found].value.as_uint = static_cast<unsigned int>(fake::kPower * 1e3);
        ++found;
    }
    *count = found;
    return found > 0 ? abi::kSuccess : abi::kNotFound;
}

int nvmlDeviceGetClockInfo(abi::Device, int type, unsigned int* megahertz) {
    virtual_ns += clock_cost_ns;
    ++reads_of_clock;
    *megahertz = type == abi::kClockSm ? static_cast<unsigned int>(fake::kClockMhz) : 1;
    return outcome(fake::Call::clock);
}

int nvmlDeviceGetTemperature(abi::Device, int, unsigned int* celsius) {
    *celsius = static_cast<unsigned int>(fake::kTemperature);
    return outcome(fake::Call::state);
}

int nvmlDeviceGetPowerManagementLimit(abi::Device, unsigned int* milliwatts) {
    virtual_ns += limit_cost_ns;
    ++reads_of_limit;
    *milliwatts = static_cast<unsigned int>(limit_w * 1e3);
    return outcome(fake::Call::state);
}

int nvmlDeviceGetUtilizationRates(abi::Device, abi::Utilization* percent) {
    *percent = {50, 10};
    return outcome(fake::Call::state);
}

// There is no nvmlDeviceGetEnforcedPowerLimit, and the reasons have their old name.
int nvmlDeviceGetCurrentClocksThrottleReasons(abi::Device, unsigned long long* reasons) {
    *reasons = 4;
    return outcome(fake::Call::state);
}

int nvmlGpmQueryDeviceSupport(abi::Device, abi::GpmSupport* support) {
    support->supported = support->version == 1 && outcome(fake::Call::gpm) != abi::kNotSupported;
    return abi::kSuccess;
}

int nvmlGpmSampleAlloc(abi::GpmSample* sample) {
    *sample = new int64_t{0};
    ++gpm_samples;
    return abi::kSuccess;
}

int nvmlGpmSampleFree(abi::GpmSample sample) {
    delete static_cast<int64_t*>(sample);
    --gpm_samples;
    return abi::kSuccess;
}

int nvmlGpmSampleGet(abi::Device, abi::GpmSample sample) {
    *static_cast<int64_t*>(sample) = now();
    return outcome(fake::Call::gpm);
}

int nvmlGpmMetricsGet(abi::GpmMetrics* metrics) {
    const int64_t apart = *static_cast<int64_t*>(metrics->newer) - *static_cast<int64_t*>(metrics->older);
    if (metrics->version != 1 || apart < fake::kSecond / 10) return abi::kInvalidArgument;
    for (unsigned int i = 0; i < metrics->count; ++i) {
        abi::GpmMetric& metric = metrics->metrics[i];
        metric.code = metric.id == abi::kGpmSmOccupancy ? abi::kNotSupported : abi::kSuccess;
        metric.value = metric.id < abi::kGpmNvlinkTotalRx ? 100 * fake::kBusy : 10 << 10;
    }
    return abi::kSuccess;
}

int cuCtxGetCurrent(void** context) {
    *context = current_context;
    return 0;
}

int cuCtxSetCurrent(void* context) {
    current_context = context;
    return 0;
}

int cuStreamCreate(void** stream, unsigned) {
    static int the_stream;
    *stream = &the_stream;
    return 0;
}

int cuStreamDestroy_v2(void*) { return 0; }

int cuStreamIsCapturing(void*, int* answer) {
    *answer = capturing ? 1 : 0;
    return 0;
}

int cuThreadExchangeStreamCaptureMode(int*) { return 0; }

int cuEventCreate(void** event, unsigned) {
    auto created = std::make_unique<Event>();
    *event = created.get();
    const std::lock_guard lock(mutex);
    all_events.emplace(*event, std::move(created));
    return 0;
}

int cuEventDestroy_v2(void* event) {
    const std::lock_guard lock(mutex);
    return all_events.erase(event) == 1 ? 0 : 400;
}

int cuEventRecord(void* event, void* stream) {
    static_cast<Event*>(event)->done_ns =
        now() + (stream == nullptr ? queue_ns.load() : 0);  // private streams are idle
    return 0;
}

int cuEventQuery(void* event) {
    ++event_queries;
    if (const int code = cuda_failure; code != 0) return code;
    return static_cast<Event*>(event)->done_ns <= now() ? 0 : 600;
}

int cuEventElapsedTime(float* ms, void* start, void* end) {
    const int64_t ns = static_cast<Event*>(end)->done_ns - static_cast<Event*>(start)->done_ns;
    *ms = static_cast<float>(static_cast<double>(ns) * 1e-6);
    return 0;
}

}  // extern "C"
