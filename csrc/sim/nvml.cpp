// The simulated libnvidia-ml.so.1: NVML's entry points over the sensors, the timeline and the faults.
#include <signal.h>
#include <strings.h>
#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>

#include "activity.hpp"
#include "clock.hpp"
#include "faults.hpp"
#include "nvml_types.hpp"
#include "sensors.hpp"
#include "state.hpp"
#include "timeline.hpp"

#define NVML_API extern "C" __attribute__((visibility("default"))) nvmlReturn_t

namespace {

using sim::Device;
using sim::State;

constexpr std::int64_t kQuickCallNs = 300;
// Calls about the state, as measured on an H200. Some are dear now and then, at moments that anybody's call meets.
constexpr std::int64_t kStateNs = 10'000;
constexpr std::int64_t kRequestedLimitNs = 375'000;
constexpr std::int64_t kDearStateNs = 1'400'000;
constexpr double kDearShare = 0.07;
constexpr std::int64_t kDearLastsNs = 1'000'000;
enum class Field : std::int64_t { kTemperature, kEnforcedLimit, kUtilisation };
constexpr std::int64_t kMemoryInfoNs = 5'000;
constexpr std::int64_t kGpmSampleNs = 300'000;
constexpr unsigned kVideoClockMhz = 1545;
constexpr unsigned kArchitectureVolta = 5;
constexpr unsigned kArchitectureAmpere = 7;
constexpr unsigned kArchitectureAda = 8;
constexpr unsigned kArchitectureHopper = 9;
constexpr unsigned long long kReservedBytes = 700ULL << 20;
constexpr unsigned long long kBytesPerClient = 600ULL << 20;  // what a CUDA context takes

std::atomic<int> initialised{0};

// Handles are the device's number in disguise, so that one outlives a simulation without dangling.
constexpr std::uintptr_t kHandleTag = 0x51e00000;

nvmlDevice_t handle_of(std::uint32_t index) { return reinterpret_cast<nvmlDevice_t>(kHandleTag + index); }

std::uint32_t index_of(nvmlDevice_t handle) {
    return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(handle) - kHandleTag);
}

std::shared_ptr<State> driver() { return initialised.load() > 0 ? sim::attached() : nullptr; }

// Lets a call hang; in real time until its fault is healed at the latest.
template <typename Look>
void hang(State& state, std::int64_t ns, Look look) {
    constexpr std::int64_t kNapNs = 2'000'000;
    if (state.config.virtual_time != 0) return sim::rest(state, ns);
    const std::int64_t began_ns = sim::now_ns(state), until_ns = began_ns + ns;
    const auto healed = [&] {
        const sim::Lock lock(state);
        return look(began_ns).delay_ns == 0;
    };
    while (sim::now_ns(state) < until_ns && !healed()) {
        sim::rest(state, std::min(kNapNs, until_ns - sim::now_ns(state)));
    }
}

// What becomes of a call, after it has hung: an NVML return code. `look(now_ns)` says what is in its way.
template <typename Look>
nvmlReturn_t meet(State& state, Look look) {
    sim::Trouble met = {};
    {
        const sim::Lock lock(state);
        met = look(sim::now_ns(state));
    }
    if (met.delay_ns > 0) hang(state, met.delay_ns, look);
    return met.code;
}

// The same for a call that names no device.
nvmlReturn_t meet_system(State& state, const char* call) {
    return meet(state, [&](std::int64_t now_ns) { return sim::system_trouble(state, call, now_ns); });
}

// Runs act(state, device, now_ns) -> nvmlReturn_t for a call that takes cost(device, now_ns) ns, unless a fault says
// otherwise. The lock is not held while the time passes.
template <typename Cost, typename Act>
nvmlReturn_t timed(nvmlDevice_t handle, const char* call, Cost cost, Act act) {
    const std::shared_ptr<State> state = driver();
    if (state == nullptr) return NVML_ERROR_UNINITIALIZED;
    const std::uint32_t index = index_of(handle);
    if (index >= state->config.device_count) return NVML_ERROR_INVALID_ARGUMENT;
    Device& device = state->device(index);

    const nvmlReturn_t code = meet(*state, [&](std::int64_t now_ns) { return sim::trouble(device, call, now_ns); });
    if (code != NVML_SUCCESS) return code;
    std::int64_t cost_ns = 0;
    {
        const sim::Lock lock(*state);
        cost_ns = cost(device, sim::now_ns(*state));
    }
    sim::spend(*state, cost_ns);
    const sim::Lock lock(*state);
    return act(*state, device, sim::now_ns(*state));
}

template <typename Act>
nvmlReturn_t quick(nvmlDevice_t handle, const char* call, Act act) {
    return timed(handle, call, [](Device&, std::int64_t) { return kQuickCallNs; }, act);
}

// For calls that change the device.
template <typename Act>
nvmlReturn_t change(nvmlDevice_t handle, const char* call, Act act) {
    return quick(handle, call, [&](State& state, Device& device, std::int64_t now_ns) -> nvmlReturn_t {
        return sim::ignored(device, call, now_ns) ? NVML_SUCCESS : act(state, device, now_ns);
    });
}

// For calls that hand out one constant or simple number.
template <typename Out, typename Cost, typename Get>
nvmlReturn_t give_at(nvmlDevice_t handle, const char* call, Out* out, Cost cost, Get get) {
    if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return timed(handle, call, cost, [&](State& state, Device& device, std::int64_t now_ns) {
        *out = static_cast<Out>(get(state, device, now_ns));
        return NVML_SUCCESS;
    });
}

template <typename Out, typename Get>
nvmlReturn_t give(nvmlDevice_t handle, const char* call, Out* out, Get get) {
    return give_at(handle, call, out, [](Device&, std::int64_t) { return kQuickCallNs; }, get);
}

// The same for a field of the state, at its cost.
template <std::int64_t kCostNs>
std::int64_t always(Device&, std::int64_t) {
    return kCostNs;
}

template <Field kField>
std::int64_t now_and_then(Device& device, std::int64_t now_ns) {
    constexpr std::int64_t kFields = 3;
    const std::int64_t moment = now_ns / kDearLastsNs * kFields + static_cast<std::int64_t>(kField);
    return device.dice.uniform(sim::Draw::kDear, moment) < kDearShare ? kDearStateNs : kStateNs;
}

template <typename Out>
nvmlReturn_t give_constant(nvmlDevice_t handle, const char* call, Out* out, Out value) {
    return give(handle, call, out, [&](State&, Device&, std::int64_t) { return value; });
}

nvmlReturn_t copy_text(char* out, unsigned size, const char* text) {
    if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    if (std::strlen(text) >= size) return NVML_ERROR_INSUFFICIENT_SIZE;
    std::memcpy(out, text, std::strlen(text) + 1);
    return NVML_SUCCESS;
}

unsigned milliwatts(double power_w) { return static_cast<unsigned>(std::lround(power_w * 1e3)); }

unsigned long long millijoules(double energy_j) { return static_cast<unsigned long long>(energy_j * 1e3); }

void pci_bus_id(std::uint32_t index, char* text, std::size_t size) {
    std::snprintf(text, size, "%08X:%02X:00.0", 0u, 0x18u + index);
}

double sm_clock_mhz(const State& state, const Device& device, std::int64_t now_ns) {
    const sim::Work* work = sim::work_at(device, sim::last_refresh_ns(state, device, now_ns));
    if (work != nullptr) return static_cast<double>(work->clock_mhz);
    return device.locked_mhz > 0.0 ? device.locked_mhz : state.config.profile.max_clock_mhz;
}

unsigned long long event_reasons(const State& state, const Device& device, std::int64_t now_ns) {
    const sim::Work* work = sim::work_at(device, sim::last_refresh_ns(state, device, now_ns));
    const double top_mhz = device.locked_mhz > 0.0 ? device.locked_mhz : state.config.profile.max_clock_mhz;
    if (work == nullptr) return sim::busy_share(state, device, now_ns) > 0.0 ? 0ULL : kReasonGpuIdle;
    const bool capped = static_cast<double>(work->clock_mhz) < top_mhz - 1.0;
    return capped ? kReasonSwPowerCap : 0ULL;
}

// Highest first, in NVML's way of asking twice: for the number, then for the list.
nvmlReturn_t list_clocks(unsigned top_mhz, unsigned bottom_mhz, unsigned& count, unsigned* clocks_mhz) {
    constexpr unsigned kStepMhz = 15;
    const unsigned room = clocks_mhz == nullptr ? 0 : count;
    count = (top_mhz - bottom_mhz) / kStepMhz + 1;
    if (count > room) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < count; ++i) clocks_mhz[i] = top_mhz - i * kStepMhz;
    return NVML_SUCCESS;
}

unsigned live_clients(const Device& device, pid_t (&pids)[sim::kMaxClients]) {
    unsigned count = 0;
    for (const std::int32_t client : device.clients) {
        if (client != 0 && (kill(client, 0) == 0 || errno == EPERM)) pids[count++] = client;
    }
    return count;
}

// What the driver lists, which in a container need not be what runs.
unsigned listed_clients(const Device& device, std::int64_t now_ns, pid_t (&pids)[sim::kMaxClients]) {
    constexpr pid_t kBeyondEveryPid = 1 << 22;  // PID_MAX_LIMIT (include/linux/threads.h)
    if (sim::has_fault(device, kNoProcesses, now_ns)) return 0;
    const unsigned count = live_clients(device, pids);
    const bool foreign = sim::has_fault(device, kForeignPids, now_ns);
    for (unsigned i = 0; foreign && i < count; ++i) pids[i] += kBeyondEveryPid;
    return count;
}

unsigned memory_clock_mhz(const State& state) { return static_cast<unsigned>(state.config.profile.memory_clock_mhz); }

nvmlReturn_t memory_info(nvmlDevice_t handle, const char* call, nvmlMemory_t& out) {
    const auto cost = [](Device&, std::int64_t) { return kMemoryInfoNs; };
    return timed(handle, call, cost, [&](State& state, Device& device, std::int64_t) {
        pid_t pids[sim::kMaxClients];
        out.total = static_cast<unsigned long long>(state.config.profile.memory_bytes);
        out.used = kReservedBytes + live_clients(device, pids) * kBytesPerClient;
        out.free = out.total - out.used;
        return NVML_SUCCESS;
    });
}

nvmlReturn_t no_processes(nvmlDevice_t handle, const char* call, unsigned* count) {
    return give_constant(handle, call, count, 0u);
}

nvmlReturn_t list_processes(nvmlDevice_t handle, const char* call, unsigned* count, nvmlProcessInfo_t* out) {
    if (count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return quick(handle, call, [&](State&, Device& device, std::int64_t now_ns) {
        pid_t pids[sim::kMaxClients];
        const unsigned found = listed_clients(device, now_ns, pids);
        const unsigned room = out == nullptr ? 0 : *count;
        *count = found;
        if (found > room) return NVML_ERROR_INSUFFICIENT_SIZE;
        for (unsigned i = 0; i < found; ++i) out[i] = {static_cast<unsigned>(pids[i]), kBytesPerClient, ~0u, ~0u};
        return NVML_SUCCESS;
    });
}

void read_field(State& state, Device& device, std::int64_t now_ns, nvmlFieldValue_t& field) {
    const EpSimProfile& profile = state.config.profile;
    const auto power = [&](double power_w) {
        field.valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        field.value.uiVal = milliwatts(power_w);
    };
    field.nvmlReturn = NVML_SUCCESS;
    field.timestamp = sim::wall_ns(state, now_ns) / 1000;
    field.latencyUsec = 0;
    switch (field.fieldId) {
        case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
            field.valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            field.value.ullVal = millijoules(sim::counter_j(state, device, now_ns));
            if (sim::has_fault(device, kNoCounter, now_ns)) field.nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
            break;
        case NVML_FI_DEV_POWER_AVERAGE:
            field.nvmlReturn = sim::trouble(device, "NVML_FI_DEV_POWER_AVERAGE", now_ns).code;
            power(sim::mean_power_w(state, device, now_ns, 1'000'000'000));
            break;
        case NVML_FI_DEV_POWER_INSTANT:
            field.nvmlReturn = sim::trouble(device, "NVML_FI_DEV_POWER_INSTANT", now_ns).code;
            power(sim::mean_power_w(state, device, now_ns, 25'000'000));
            break;
        case NVML_FI_DEV_POWER_MIN_LIMIT:
            power(profile.min_limit_w);
            break;
        case NVML_FI_DEV_POWER_MAX_LIMIT:
        case NVML_FI_DEV_POWER_DEFAULT_LIMIT:
            power(profile.max_limit_w);
            break;
        case NVML_FI_DEV_POWER_CURRENT_LIMIT:
            power(sim::enforced_limit_w(device, now_ns));
            break;
        case NVML_FI_DEV_POWER_REQUESTED_LIMIT:
            power(device.limit_w);
            break;
        default:
            field.nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    }
}

// What the simulation keeps behind an nvmlGpmSample_t.
struct Snapshot {
    nvmlDevice_t device;
    std::int64_t t_ns;
};

void read_metric(const sim::Activity& activity, nvmlGpmMetric_t& metric) {
    metric.nvmlReturn = NVML_SUCCESS;
    switch (metric.metricId) {
        case NVML_GPM_METRIC_SM_UTIL:
        case NVML_GPM_METRIC_SM_OCCUPANCY:
            metric.value = 100.0 * activity.sm;
            break;
        case NVML_GPM_METRIC_ANY_TENSOR_UTIL:
            metric.value = 100.0 * activity.tensor;
            break;
        case NVML_GPM_METRIC_DRAM_BW_UTIL:
            metric.value = 100.0 * activity.dram;
            break;
        case NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC:
        case NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC:
            metric.value = 0.0;  // simulated devices have no links
            break;
        default:
            metric.nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    }
}

template <typename Matches>
nvmlReturn_t find_device(nvmlDevice_t* out, const char* call, Matches matches) {
    const std::shared_ptr<State> state = driver();
    if (state == nullptr) return NVML_ERROR_UNINITIALIZED;
    if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    for (std::uint32_t index = 0; index < state->config.device_count; ++index) {
        if (!matches(*state, index)) continue;
        *out = handle_of(index);
        const Device& device = state->device(index);
        return meet(*state, [&](std::int64_t now_ns) { return sim::trouble(device, call, now_ns); });
    }
    return NVML_ERROR_NOT_FOUND;
}

}  // namespace

// The library and the system

NVML_API nvmlInit_v2() {
    const std::shared_ptr<State> state = sim::attached();
    if (state == nullptr) return NVML_ERROR_DRIVER_NOT_LOADED;
    const nvmlReturn_t code = meet_system(*state, __func__);
    if (code == NVML_SUCCESS) ++initialised;
    return code;
}
// There is no nvmlInit() without a version: torch's CUDA builds ask through it whether there is a GPU to compute on,
// and on a machine without one must hear of none. They then ask CUDA itself.
NVML_API nvmlInitWithFlags(unsigned) { return nvmlInit_v2(); }

NVML_API nvmlShutdown() {
    if (initialised.load() == 0) return NVML_ERROR_UNINITIALIZED;
    --initialised;
    return NVML_SUCCESS;
}

extern "C" __attribute__((visibility("default"))) const char* nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
        case NVML_SUCCESS:
            return "Success";
        case NVML_ERROR_UNINITIALIZED:
            return "Uninitialized";
        case NVML_ERROR_INVALID_ARGUMENT:
            return "Invalid Argument";
        case NVML_ERROR_NOT_SUPPORTED:
            return "Not Supported";
        case NVML_ERROR_NO_PERMISSION:
            return "Insufficient Permissions";
        case NVML_ERROR_NOT_FOUND:
            return "Not Found";
        case NVML_ERROR_INSUFFICIENT_SIZE:
            return "Insufficient Size";
        case NVML_ERROR_DRIVER_NOT_LOADED:
            return "Driver Not Loaded";
        case NVML_ERROR_FUNCTION_NOT_FOUND:
            return "Function Not Found";
        case NVML_ERROR_GPU_IS_LOST:
            return "GPU is lost";
        case NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return "Driver/library version mismatch";
        default:
            return "Unknown Error";
    }
}

NVML_API nvmlSystemGetDriverVersion(char* text, unsigned size) { return copy_text(text, size, "580.159.04"); }
NVML_API nvmlSystemGetNVMLVersion(char* text, unsigned size) { return copy_text(text, size, "13.580.159.04"); }
NVML_API nvmlSystemGetCudaDriverVersion(int* version) {
    *version = 13000;
    return NVML_SUCCESS;
}
NVML_API nvmlSystemGetCudaDriverVersion_v2(int* version) { return nvmlSystemGetCudaDriverVersion(version); }

// Finding a device

NVML_API nvmlDeviceGetCount_v2(unsigned* count) {
    const std::shared_ptr<State> state = driver();
    if (state == nullptr) return NVML_ERROR_UNINITIALIZED;
    *count = state->config.device_count;
    return meet_system(*state, __func__);
}
NVML_API nvmlDeviceGetCount(unsigned* count) { return nvmlDeviceGetCount_v2(count); }

NVML_API nvmlDeviceGetHandleByIndex_v2(unsigned wanted, nvmlDevice_t* device) {
    const nvmlReturn_t found =
        find_device(device, __func__, [&](State&, std::uint32_t index) { return index == wanted; });
    return found == NVML_ERROR_NOT_FOUND ? NVML_ERROR_INVALID_ARGUMENT : found;
}
NVML_API nvmlDeviceGetHandleByIndex(unsigned wanted, nvmlDevice_t* device) {
    return nvmlDeviceGetHandleByIndex_v2(wanted, device);
}
NVML_API nvmlDeviceGetHandleByUUID(const char* uuid, nvmlDevice_t* device) {
    if (uuid == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return find_device(device, __func__, [&](State& state, std::uint32_t index) {
        return std::strcmp(state.device(index).uuid, uuid) == 0;
    });
}
NVML_API nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, nvmlDevice_t* device) {
    if (bus_id == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return find_device(device, __func__, [&](State&, std::uint32_t index) {
        char text[32];
        pci_bus_id(index, text, sizeof text);
        return strcasecmp(text, bus_id) == 0;
    });
}
NVML_API nvmlDeviceGetHandleByPciBusId(const char* bus_id, nvmlDevice_t* device) {
    return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}

// What a device is

NVML_API nvmlDeviceGetName(nvmlDevice_t handle, char* text, unsigned size) {
    return quick(handle, __func__,
                 [&](State& state, Device&, std::int64_t) { return copy_text(text, size, state.config.profile.name); });
}
NVML_API nvmlDeviceGetUUID(nvmlDevice_t handle, char* text, unsigned size) {
    return quick(handle, __func__,
                 [&](State&, Device& device, std::int64_t) { return copy_text(text, size, device.uuid); });
}
NVML_API nvmlDeviceGetIndex(nvmlDevice_t handle, unsigned* index) {
    return give_constant(handle, __func__, index, index_of(handle));
}
NVML_API nvmlDeviceGetMinorNumber(nvmlDevice_t handle, unsigned* number) {
    return give_constant(handle, __func__, number, index_of(handle));
}
NVML_API nvmlDeviceGetPciInfo_v3(nvmlDevice_t handle, nvmlPciInfo_t* info) {
    if (info == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return quick(handle, __func__, [&](State&, Device&, std::int64_t) {
        *info = {};
        info->bus = 0x18u + index_of(handle);
        info->pciDeviceId = 0x233510DEu;
        info->pciSubSystemId = 0x18BE10DEu;
        pci_bus_id(index_of(handle), info->busId, sizeof info->busId);
        std::snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "0000:%02X:00.0", info->bus);
        return NVML_SUCCESS;
    });
}
NVML_API nvmlDeviceGetPciInfo_v2(nvmlDevice_t handle, nvmlPciInfo_t* info) {
    return nvmlDeviceGetPciInfo_v3(handle, info);
}
NVML_API nvmlDeviceGetCudaComputeCapability(nvmlDevice_t handle, int* major, int* minor) {
    if (minor == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return give(handle, __func__, major, [minor](State& state, Device&, std::int64_t) {
        const long tenths = std::lround(state.config.profile.compute_capability * 10);
        *minor = static_cast<int>(tenths % 10);
        return tenths / 10;
    });
}
NVML_API nvmlDeviceGetArchitecture(nvmlDevice_t handle, unsigned* architecture) {
    return give(handle, __func__, architecture, [](State& state, Device&, std::int64_t) {
        const double capability = state.config.profile.compute_capability;
        if (capability >= 9.0) return kArchitectureHopper;
        if (capability >= 8.9) return kArchitectureAda;
        return capability >= 8.0 ? kArchitectureAmpere : kArchitectureVolta;
    });
}
NVML_API nvmlDeviceGetMigMode(nvmlDevice_t handle, unsigned* current, unsigned* pending) {
    if (pending != nullptr) *pending = 0;
    return give(handle, __func__, current, [](State&, Device& device, std::int64_t now_ns) {
        return sim::has_fault(device, kMig, now_ns) ? 1u : 0u;
    });
}
NVML_API nvmlDeviceIsMigDeviceHandle(nvmlDevice_t handle, unsigned* mig) {
    return give_constant(handle, __func__, mig, 0u);
}
NVML_API nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t handle, unsigned* count) {
    return give_constant(handle, __func__, count, 0u);
}
NVML_API nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t, unsigned, nvmlDevice_t*) { return NVML_ERROR_NOT_FOUND; }
NVML_API nvmlDeviceGetPersistenceMode(nvmlDevice_t handle, int* mode) {
    return give(handle, __func__, mode, [](State&, Device& device, std::int64_t) { return device.persistence; });
}
NVML_API nvmlDeviceSetPersistenceMode(nvmlDevice_t handle, int mode) {
    return change(handle, __func__, [&](State&, Device& device, std::int64_t) {
        device.persistence = mode;
        return NVML_SUCCESS;
    });
}
NVML_API nvmlDeviceGetComputeMode(nvmlDevice_t handle, int* mode) { return give_constant(handle, __func__, mode, 0); }
NVML_API nvmlDeviceGetPerformanceState(nvmlDevice_t handle, int* state) {
    return give_constant(handle, __func__, state, 0);
}
NVML_API nvmlDeviceGetFanSpeed(nvmlDevice_t, unsigned*) { return NVML_ERROR_NOT_SUPPORTED; }

// Energy and power

NVML_API nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t handle, unsigned long long* energy_mj) {
    if (energy_mj == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    std::int64_t cost_ns = 0;
    double instant = 0.0;  // where within the call the counter is looked at: no reader may assume either end
    const auto cost = [&](Device& device, std::int64_t now_ns) {
        if (sim::has_fault(device, kNoCounter, now_ns)) return kQuickCallNs;
        instant = device.dice.uniform(sim::Draw::kInstant, device.costs_drawn.load());
        cost_ns = sim::counter_cost_ns(device);
        return cost_ns;
    };
    return timed(handle, __func__, cost, [&](State& state, Device& device, std::int64_t now_ns) {
        if (sim::has_fault(device, kNoCounter, now_ns)) return NVML_ERROR_NOT_SUPPORTED;
        const auto ago_ns = static_cast<std::int64_t>(instant * static_cast<double>(cost_ns));
        *energy_mj = millijoules(sim::counter_j(state, device, now_ns - ago_ns));
        return NVML_SUCCESS;
    });
}

NVML_API nvmlDeviceGetSamples(nvmlDevice_t handle, int type, unsigned long long last_seen_us, unsigned* value_type,
                              unsigned* count, nvmlSample_t* samples) {
    constexpr int kTotalPower = 0;
    if (count == nullptr || value_type == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    if (type != kTotalPower) return NVML_ERROR_NOT_SUPPORTED;
    const auto cost = [&](Device& device, std::int64_t now_ns) {
        return samples == nullptr ? kQuickCallNs : sim::samples_cost_ns(device, now_ns);
    };
    return timed(handle, __func__, cost, [&](State& state, Device& device, std::int64_t now_ns) {
        if (sim::has_fault(device, kNoSampleBuffer, now_ns)) return NVML_ERROR_NOT_SUPPORTED;
        *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
        if (samples == nullptr) {
            *count = static_cast<unsigned>(sim::kSampleDepth);
            return NVML_SUCCESS;
        }
        const sim::SampleRange range = sim::visible_samples(state, device, now_ns);
        unsigned found = 0;
        for (std::int64_t number = range.first; number < range.end && found < *count; ++number) {
            const std::int64_t stamp_ns = sim::sample_stamp_ns(state, device, number);
            const auto stamp_us = static_cast<unsigned long long>(sim::wall_ns(state, stamp_ns) / 1000);
            if (stamp_us <= last_seen_us) continue;
            samples[found].timeStamp = stamp_us;
            samples[found].sampleValue = {};
            samples[found].sampleValue.uiVal = milliwatts(sim::sample(state, device, number).power_w);
            ++found;
        }
        *count = found;
        return found > 0 ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
    });
}

NVML_API nvmlDeviceGetPowerUsage(nvmlDevice_t handle, unsigned* power_mw) {
    return give(handle, __func__, power_mw, [](State& state, Device& device, std::int64_t now_ns) {
        const double window_ns = state.config.profile.usage_window_s * 1e9;
        return milliwatts(sim::mean_power_w(state, device, now_ns, static_cast<std::int64_t>(window_ns)));
    });
}

NVML_API nvmlDeviceGetFieldValues(nvmlDevice_t handle, int count, nvmlFieldValue_t* values) {
    if (values == nullptr || count < 0) return NVML_ERROR_INVALID_ARGUMENT;
    const bool reads_counter = std::any_of(values, values + count, [](const nvmlFieldValue_t& field) {
        return field.fieldId == NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION;
    });
    const auto cost = [&](Device& device, std::int64_t now_ns) {
        const bool slow = reads_counter && !sim::has_fault(device, kNoCounter, now_ns);
        return slow ? sim::counter_cost_ns(device) : kQuickCallNs;
    };
    return timed(handle, __func__, cost, [&](State& state, Device& device, std::int64_t now_ns) {
        std::for_each(values, values + count,
                      [&](nvmlFieldValue_t& field) { read_field(state, device, now_ns, field); });
        return NVML_SUCCESS;
    });
}

// Limits and clocks

NVML_API nvmlDeviceGetPowerManagementMode(nvmlDevice_t handle, unsigned* mode) {
    return give_constant(handle, __func__, mode, 1u);
}
NVML_API nvmlDeviceGetPowerManagementLimit(nvmlDevice_t handle, unsigned* limit_mw) {
    return give_at(handle, __func__, limit_mw, always<kRequestedLimitNs>,
                   [](State&, Device& device, std::int64_t) { return milliwatts(device.limit_w); });
}
NVML_API nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t handle, unsigned* limit_mw) {
    return give_at(
        handle, __func__, limit_mw, now_and_then<Field::kEnforcedLimit>,
        [](State&, Device& device, std::int64_t now_ns) { return milliwatts(sim::enforced_limit_w(device, now_ns)); });
}
NVML_API nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t handle, unsigned* limit_mw) {
    return give(handle, __func__, limit_mw,
                [](State& state, Device&, std::int64_t) { return milliwatts(state.config.profile.max_limit_w); });
}
NVML_API nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t handle, unsigned* min_mw, unsigned* max_mw) {
    if (min_mw == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return give(handle, __func__, max_mw, [&](State& state, Device&, std::int64_t) {
        *min_mw = milliwatts(state.config.profile.min_limit_w);
        return milliwatts(state.config.profile.max_limit_w);
    });
}
NVML_API nvmlDeviceSetPowerManagementLimit(nvmlDevice_t handle, unsigned limit_mw) {
    return change(handle, __func__, [&](State& state, Device& device, std::int64_t) {
        const double limit_w = limit_mw * 1e-3;
        const EpSimProfile& profile = state.config.profile;
        if (limit_w < profile.min_limit_w || limit_w > profile.max_limit_w) return NVML_ERROR_INVALID_ARGUMENT;
        device.limit_w = limit_w;
        return NVML_SUCCESS;
    });
}
NVML_API nvmlDeviceSetGpuLockedClocks(nvmlDevice_t handle, unsigned min_mhz, unsigned max_mhz) {
    return change(handle, __func__, [&](State& state, Device& device, std::int64_t) {
        const EpSimProfile& profile = state.config.profile;
        if (min_mhz > max_mhz) return NVML_ERROR_INVALID_ARGUMENT;
        device.locked_mhz = std::clamp(static_cast<double>(max_mhz), profile.min_clock_mhz, profile.max_clock_mhz);
        return NVML_SUCCESS;
    });
}
NVML_API nvmlDeviceResetGpuLockedClocks(nvmlDevice_t handle) {
    return change(handle, __func__, [](State&, Device& device, std::int64_t) {
        device.locked_mhz = 0.0;
        return NVML_SUCCESS;
    });
}
NVML_API nvmlDeviceGetClockInfo(nvmlDevice_t handle, int type, unsigned* clock_mhz) {
    return give_at(handle, __func__, clock_mhz, always<kStateNs>,
                   [&](State& state, Device& device, std::int64_t now_ns) {
                       if (type == 2) return memory_clock_mhz(state);
                       return type == 3 ? kVideoClockMhz : static_cast<unsigned>(sm_clock_mhz(state, device, now_ns));
                   });
}
NVML_API nvmlDeviceGetMaxClockInfo(nvmlDevice_t handle, int type, unsigned* clock_mhz) {
    return give(handle, __func__, clock_mhz, [&](State& state, Device&, std::int64_t) {
        if (type == 2) return memory_clock_mhz(state);
        return type == 3 ? kVideoClockMhz : static_cast<unsigned>(state.config.profile.max_clock_mhz);
    });
}
NVML_API nvmlDeviceGetApplicationsClock(nvmlDevice_t handle, int type, unsigned* clock_mhz) {
    return nvmlDeviceGetMaxClockInfo(handle, type, clock_mhz);
}
NVML_API nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t handle, unsigned* count, unsigned* clocks_mhz) {
    if (count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return quick(handle, __func__, [&](State& state, Device&, std::int64_t) {
        return list_clocks(memory_clock_mhz(state), memory_clock_mhz(state), *count, clocks_mhz);
    });
}
NVML_API nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t handle, unsigned memory_mhz, unsigned* count,
                                              unsigned* clocks_mhz) {
    if (count == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return quick(handle, __func__, [&](State& state, Device&, std::int64_t) {
        const EpSimProfile& profile = state.config.profile;
        if (memory_mhz != memory_clock_mhz(state)) return static_cast<nvmlReturn_t>(NVML_ERROR_NOT_FOUND);
        return list_clocks(static_cast<unsigned>(profile.max_clock_mhz), static_cast<unsigned>(profile.min_clock_mhz),
                           *count, clocks_mhz);
    });
}
NVML_API nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t handle, unsigned long long* reasons) {
    return give_at(handle, __func__, reasons, always<kStateNs>, event_reasons);
}
NVML_API nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t handle, unsigned long long* reasons) {
    return give_at(handle, __func__, reasons, always<kStateNs>, event_reasons);
}

// Load

NVML_API nvmlDeviceGetTemperature(nvmlDevice_t handle, int, unsigned* celsius) {
    return give_at(handle, __func__, celsius, now_and_then<Field::kTemperature>,
                   [](State& state, Device& device, std::int64_t now_ns) {
                       return 30.0 + 0.05 * sim::mean_power_w(state, device, now_ns, 10'000'000'000);
                   });
}
NVML_API nvmlDeviceGetUtilizationRates(nvmlDevice_t handle, nvmlUtilization_t* out) {
    return give_at(handle, __func__, out, now_and_then<Field::kUtilisation>,
                   [](State& state, Device& device, std::int64_t now_ns) {
                       const double busy = sim::busy_share(state, device, now_ns);
                       const sim::Work* work = sim::work_at(device, sim::last_refresh_ns(state, device, now_ns));
                       const double memory = work == nullptr ? 0.0 : static_cast<double>(work->memory_share);
                       return nvmlUtilization_t{static_cast<unsigned>(100.0 * busy),
                                                static_cast<unsigned>(100.0 * busy * memory)};
                   });
}
NVML_API nvmlDeviceGetMemoryBusWidth(nvmlDevice_t handle, unsigned* bits) {
    return give(handle, __func__, bits, [](State& state, Device&, std::int64_t) {
        return static_cast<unsigned>(state.config.profile.memory_bus_bits);
    });
}
NVML_API nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, nvmlMemory_t* out) {
    return out == nullptr ? NVML_ERROR_INVALID_ARGUMENT : memory_info(handle, __func__, *out);
}
NVML_API nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t handle, nvmlMemory_v2_t* out) {
    if (out == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    nvmlMemory_t plain = {};
    const nvmlReturn_t result = memory_info(handle, __func__, plain);
    *out = {out->version, plain.total, kReservedBytes, plain.free, plain.used - std::min(plain.used, kReservedBytes)};
    return result;
}
NVML_API nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t handle, unsigned* count, nvmlProcessInfo_t* out) {
    return list_processes(handle, __func__, count, out);
}
NVML_API nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t handle, unsigned* count, nvmlProcessInfo_t* out) {
    return list_processes(handle, __func__, count, out);
}
NVML_API nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t handle, unsigned* count, nvmlProcessInfo_t*) {
    return no_processes(handle, __func__, count);
}
NVML_API nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t handle, unsigned* count, nvmlProcessInfo_t* out) {
    const std::shared_ptr<State> state = driver();
    if (state == nullptr) return NVML_ERROR_UNINITIALIZED;
    const std::uint32_t index = index_of(handle);
    const bool through_mps =
        index < state->config.device_count && sim::has_fault(state->device(index), kMps, sim::now_ns(*state));
    return through_mps ? list_processes(handle, __func__, count, out) : no_processes(handle, __func__, count);
}

// Performance monitoring

NVML_API nvmlGpmQueryDeviceSupport(nvmlDevice_t handle, nvmlGpmSupport_t* support) {
    if (support == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    return give_constant(handle, __func__, &support->isSupportedDevice, 1u);
}
NVML_API nvmlGpmSampleAlloc(nvmlGpmSample_t* sample) {
    if (sample == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    *sample = new Snapshot{};
    return NVML_SUCCESS;
}
NVML_API nvmlGpmSampleFree(nvmlGpmSample_t sample) {
    delete static_cast<Snapshot*>(sample);
    return NVML_SUCCESS;
}
NVML_API nvmlGpmSampleGet(nvmlDevice_t handle, nvmlGpmSample_t sample) {
    if (sample == nullptr) return NVML_ERROR_INVALID_ARGUMENT;
    const auto cost = [](Device&, std::int64_t) { return kGpmSampleNs; };
    return timed(handle, __func__, cost, [&](State&, Device&, std::int64_t now_ns) {
        *static_cast<Snapshot*>(sample) = {handle, now_ns};
        return NVML_SUCCESS;
    });
}
NVML_API nvmlGpmMetricsGet(nvmlGpmMetricsGet_t* get) {
    if (get == nullptr || get->version != 1 || get->sample1 == nullptr || get->sample2 == nullptr) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    const auto* older = static_cast<const Snapshot*>(get->sample1);
    const auto* newer = static_cast<const Snapshot*>(get->sample2);
    if (older->device != newer->device || older->t_ns >= newer->t_ns) return NVML_ERROR_INVALID_ARGUMENT;
    return quick(newer->device, __func__, [&](State& state, Device& device, std::int64_t) {
        const sim::Activity activity = sim::activity(state, device, older->t_ns, newer->t_ns);
        std::for_each_n(get->metrics, get->numMetrics, [&](nvmlGpmMetric_t& one) { read_metric(activity, one); });
        return NVML_SUCCESS;
    });
}
