// The simulated libcuda.so.1: the event, stream and context calls that marking work on a GPU needs.
//
// Every ordinary stream of a device is its one work queue. A stream made by cuStreamCreate is private: nothing is ever
// queued on it, so an event recorded there is complete at once.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "clock.hpp"
#include "state.hpp"
#include "timeline.hpp"

#define CUDA_API extern "C" __attribute__((visibility("default"))) CUresult

using CUresult = int;
using CUcontext = void*;
using CUdevice = int;

enum : CUresult {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_CAPTURED_EVENT = 907,
};

// Of CUdevice_attribute.
enum : int {
    kMultiprocessors = 16,
    kMemoryClockKhz = 36,
    kMemoryBusBits = 37,
    kL2Bytes = 38,
    kMajor = 75,
    kMinor = 76,
    kSharedBytes = 81,  // of one multiprocessor
};

struct CUuuid {
    unsigned char bytes[16];
};

struct CUstream_st {};

struct CUevent_st {
    std::uint32_t device;
    std::int64_t done_ns;
    bool recorded;
    bool captured;
};

using CUstream = CUstream_st*;
using CUevent = CUevent_st*;

namespace {

constexpr double kDeviceClockRate = 1.0 + 3e-6;  // device seconds per host second
constexpr std::uintptr_t kContextTag = 0xc0de0000;

enum Capture : int { kCaptureNone, kCaptureActive, kCaptureInvalidated };
enum CaptureMode : int { kGlobal, kThreadLocal, kRelaxed };

std::atomic<bool> initialised{false};
std::atomic<int> capture{kCaptureNone};
thread_local int capture_mode = kGlobal;
thread_local bool context_chosen = false;
thread_local CUcontext chosen_context = nullptr;

std::mutex streams_mutex;  // guards private_streams
std::set<CUstream> private_streams;

bool is_private(CUstream stream) {
    const std::lock_guard<std::mutex> guard(streams_mutex);
    return private_streams.count(stream) > 0;
}

std::shared_ptr<sim::State> driver() {
    std::shared_ptr<sim::State> state = sim::attached();
    const bool ready = state != nullptr && (state->config.contexts != 0 || initialised.load());
    return ready ? state : nullptr;
}

// The devices this process sees, in CUDA's order: CUDA_VISIBLE_DEVICES up to its first entry that names none.
std::vector<std::uint32_t> visible_devices(const sim::State& state) {
    std::vector<std::uint32_t> devices;
    const char* setting = std::getenv("CUDA_VISIBLE_DEVICES");
    if (setting == nullptr) {
        for (std::uint32_t i = 0; i < state.config.device_count; ++i) devices.push_back(i);
        return devices;
    }
    const std::string text = std::string(setting) + ",";
    for (std::size_t begin = 0, comma = 0; (comma = text.find(',', begin)) != std::string::npos; begin = comma + 1) {
        const std::string entry = text.substr(begin, comma - begin);
        std::uint32_t index = 0;
        for (; index < state.config.device_count; ++index) {
            const bool by_uuid =
                entry.size() > 4 && std::strncmp(state.device(index).uuid, entry.c_str(), entry.size()) == 0;
            if (by_uuid || entry == std::to_string(index)) break;
        }
        if (index == state.config.device_count) break;
        devices.push_back(index);
    }
    return devices;
}

CUcontext context_of(std::uint32_t ordinal) { return reinterpret_cast<CUcontext>(kContextTag + ordinal); }

CUcontext current_context(const sim::State& state) {
    if (context_chosen) return chosen_context;
    return state.config.contexts != 0 && !visible_devices(state).empty() ? context_of(0) : nullptr;
}

// The device of this thread's context; false if there is none.
bool current_device(const sim::State& state, std::uint32_t& device) {
    const CUcontext context = current_context(state);
    const std::vector<std::uint32_t> devices = visible_devices(state);
    const std::uintptr_t ordinal = reinterpret_cast<std::uintptr_t>(context) - kContextTag;
    if (context == nullptr || ordinal >= devices.size()) return false;
    device = devices[ordinal];
    return true;
}

bool is_done(const sim::State& state, const CUevent_st& event) {
    return !event.recorded || sim::now_ns(state) >= event.done_ns;
}

}  // namespace

// For tests: puts every stream of this process into (1) or out of (0) capture, and tells what became of it (2: broken).
extern "C" __attribute__((visibility("default"))) int ep_sim_capture(int status) {
    return status < 0 ? capture.load() : capture.exchange(status);
}

CUDA_API cuInit(unsigned) {
    if (sim::attached() == nullptr) return CUDA_ERROR_NO_DEVICE;
    initialised = true;
    return CUDA_SUCCESS;
}
CUDA_API cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

CUDA_API cuDeviceGetCount(int* count) {
    const std::shared_ptr<sim::State> state = driver();
    if (state == nullptr) return CUDA_ERROR_NOT_INITIALIZED;
    *count = static_cast<int>(visible_devices(*state).size());
    return CUDA_SUCCESS;
}
CUDA_API cuDeviceGet(CUdevice* device, int ordinal) {
    const std::shared_ptr<sim::State> state = driver();
    if (state == nullptr) return CUDA_ERROR_NOT_INITIALIZED;
    if (ordinal < 0 || static_cast<std::size_t>(ordinal) >= visible_devices(*state).size()) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *device = ordinal;
    return CUDA_SUCCESS;
}
CUDA_API cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
    CUdevice known = 0;
    const CUresult result = cuDeviceGet(&known, device);
    if (result != CUDA_SUCCESS) return result;
    const std::shared_ptr<sim::State> state = driver();
    const std::uint32_t index = visible_devices(*state)[static_cast<std::size_t>(device)];
    std::string digits(state->device(index).uuid + 4);
    digits.erase(std::remove(digits.begin(), digits.end(), '-'), digits.end());
    for (std::size_t i = 0; i < sizeof uuid->bytes; ++i) {
        uuid->bytes[i] = static_cast<unsigned char>(std::stoul(digits.substr(2 * i, 2), nullptr, 16));
    }
    return CUDA_SUCCESS;
}
CUDA_API cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    CUdevice known = 0;
    const CUresult result = cuDeviceGet(&known, device);
    if (result != CUDA_SUCCESS) return result;
    const EpSimProfile& profile = driver()->config.profile;
    switch (attribute) {
        case kMultiprocessors:
            *value = static_cast<int>(profile.multiprocessors);
            break;
        case kMemoryClockKhz:
            *value = static_cast<int>(profile.memory_clock_mhz * 1e3);
            break;
        case kMemoryBusBits:
            *value = static_cast<int>(profile.memory_bus_bits);
            break;
        case kL2Bytes:
            *value = static_cast<int>(profile.l2_bytes);
            break;
        case kMajor:
            *value = static_cast<int>(profile.compute_capability);
            break;
        case kMinor:
            *value = static_cast<int>(std::lround(profile.compute_capability * 10)) % 10;
            break;
        case kSharedBytes:
            *value = static_cast<int>(profile.shared_bytes);
            break;
        default:
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}
CUDA_API cuDeviceGetUuid(CUuuid* uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

CUDA_API cuCtxGetCurrent(CUcontext* context) {
    const std::shared_ptr<sim::State> state = driver();
    if (state == nullptr) return CUDA_ERROR_NOT_INITIALIZED;
    *context = current_context(*state);
    return CUDA_SUCCESS;
}
CUDA_API cuCtxSetCurrent(CUcontext context) {
    if (driver() == nullptr) return CUDA_ERROR_NOT_INITIALIZED;
    context_chosen = true;
    chosen_context = context;
    return CUDA_SUCCESS;
}
CUDA_API cuCtxGetDevice(CUdevice* device) {
    const std::shared_ptr<sim::State> state = driver();
    std::uint32_t index = 0;
    if (state == nullptr || !current_device(*state, index)) return CUDA_ERROR_INVALID_CONTEXT;
    *device = static_cast<CUdevice>(reinterpret_cast<std::uintptr_t>(current_context(*state)) - kContextTag);
    return CUDA_SUCCESS;
}
CUDA_API cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    CUdevice known = 0;
    const CUresult result = cuDeviceGet(&known, device);
    if (result == CUDA_SUCCESS) *context = context_of(static_cast<std::uint32_t>(known));
    return result;
}
CUDA_API cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }

CUDA_API cuStreamCreate(CUstream* stream, unsigned) {
    const std::shared_ptr<sim::State> state = driver();
    std::uint32_t device = 0;
    if (state == nullptr || !current_device(*state, device)) return CUDA_ERROR_INVALID_CONTEXT;
    *stream = new CUstream_st;
    const std::lock_guard<std::mutex> guard(streams_mutex);
    private_streams.insert(*stream);
    return CUDA_SUCCESS;
}
CUDA_API cuStreamDestroy_v2(CUstream stream) {
    const std::lock_guard<std::mutex> guard(streams_mutex);
    if (private_streams.erase(stream) == 0) return CUDA_ERROR_INVALID_HANDLE;
    delete stream;
    return CUDA_SUCCESS;
}
CUDA_API cuStreamIsCapturing(CUstream stream, int* status) {
    *status = is_private(stream) ? kCaptureNone : capture.load();
    return CUDA_SUCCESS;
}
CUDA_API cuThreadExchangeStreamCaptureMode(int* mode) {
    std::swap(*mode, capture_mode);
    return CUDA_SUCCESS;
}

CUDA_API cuEventCreate(CUevent* event, unsigned) {
    const std::shared_ptr<sim::State> state = driver();
    std::uint32_t device = 0;
    if (state == nullptr || !current_device(*state, device)) return CUDA_ERROR_INVALID_CONTEXT;
    *event = new CUevent_st{device, 0, false, false};
    return CUDA_SUCCESS;
}
CUDA_API cuEventDestroy_v2(CUevent event) {
    delete event;
    return CUDA_SUCCESS;
}
CUDA_API cuEventRecord(CUevent event, CUstream stream) {
    const std::shared_ptr<sim::State> state = driver();
    std::uint32_t device = 0;
    if (state == nullptr || !current_device(*state, device)) return CUDA_ERROR_INVALID_CONTEXT;
    if (event == nullptr || event->device != device) return CUDA_ERROR_INVALID_HANDLE;
    const bool alone = is_private(stream);
    event->captured = !alone && capture.load() == kCaptureActive;
    event->recorded = !event->captured;
    event->done_ns = sim::now_ns(*state);
    if (alone) return CUDA_SUCCESS;
    const sim::Lock lock(*state);
    event->done_ns = std::max(event->done_ns, sim::idle_at_ns(state->device(device)));
    return CUDA_SUCCESS;
}
CUDA_API cuEventQuery(CUevent event) {
    const std::shared_ptr<sim::State> state = driver();
    if (state == nullptr || event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (event->captured) return CUDA_ERROR_CAPTURED_EVENT;
    int active = kCaptureActive;
    if (capture_mode != kRelaxed && capture.compare_exchange_strong(active, kCaptureInvalidated)) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return is_done(*state, *event) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUDA_API cuEventSynchronize(CUevent event) {
    const CUresult result = cuEventQuery(event);
    if (result != CUDA_ERROR_NOT_READY) return result;
    const std::shared_ptr<sim::State> state = driver();
    if (state == nullptr) return CUDA_ERROR_NOT_INITIALIZED;
    while (!is_done(*state, *event)) sim::rest(*state, event->done_ns - sim::now_ns(*state));
    return CUDA_SUCCESS;
}
CUDA_API cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
    const std::shared_ptr<sim::State> state = driver();
    if (state == nullptr || start == nullptr || end == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (!start->recorded || !end->recorded || start->device != end->device) return CUDA_ERROR_INVALID_HANDLE;
    if (!is_done(*state, *start) || !is_done(*state, *end)) return CUDA_ERROR_NOT_READY;
    *milliseconds = static_cast<float>(static_cast<double>(end->done_ns - start->done_ns) * kDeviceClockRate * 1e-6);
    return CUDA_SUCCESS;
}
CUDA_API cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
