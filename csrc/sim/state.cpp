#include "state.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>

#include "clock.hpp"

namespace sim {
namespace {

constexpr std::uint64_t kMagic = 0x31304d4953504532u;  // names the layout: change it whenever a struct here changes
constexpr std::int64_t kVirtualEpochNs = 1'700'000'000'000'000'000;

std::size_t size_for(std::uint32_t devices) { return sizeof(State) + devices * sizeof(Device); }

std::shared_ptr<State> map(int file, std::size_t size) {
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (memory == MAP_FAILED) return nullptr;
    return {static_cast<State*>(memory), [size](State* state) { munmap(state, size); }};
}

class File {
  public:
    File(const char* path, int flags) : number_(open(path, flags | O_CLOEXEC, 0600)) {}
    ~File() {
        if (number_ >= 0) close(number_);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    int number() const { return number_; }

  private:
    int number_;
};

void initialise_mutex(pthread_mutex_t& mutex) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

void initialise(Device& device, const EpSimConfig& config, std::uint32_t index) {
    device.dice = {config.seed, index};
    device.limit_w = config.profile.max_limit_w;
    device.persistence = 1;
    const auto part = [&](std::int64_t i) {
        return static_cast<unsigned>(device.dice.uniform(Draw::kBase, 100 + i) * 65536.0);
    };
    std::snprintf(device.uuid, sizeof device.uuid, "GPU-%04x%04x-%04x-%04x-%04x-%04x%04x%04x", part(0), part(1),
                  part(2), part(3), part(4), part(5), part(6), part(7));
}

std::shared_ptr<State> open_state(const char* path, int& error) {
    const File file(path, O_RDWR);
    struct stat about = {};
    error = file.number() < 0 || fstat(file.number(), &about) != 0 ? errno : 0;
    if (error != 0) return nullptr;
    error = EINVAL;
    if (about.st_size < static_cast<off_t>(sizeof(State))) return nullptr;
    std::shared_ptr<State> state = map(file.number(), static_cast<std::size_t>(about.st_size));
    if (state == nullptr || state->magic != kMagic) return nullptr;
    if (about.st_size != static_cast<off_t>(size_for(state->config.device_count))) return nullptr;
    error = 0;
    return state;
}

// The state that lies beside a copy of this library: for a process that has no environment.
std::string beside_library() {
    Dl_info about = {};
    if (dladdr(reinterpret_cast<const void*>(&beside_library), &about) == 0) return {};
    const std::string library = about.dli_fname;
    return library.substr(0, library.rfind('/') + 1) + "energy-sim-state";
}

std::mutex attachment_mutex;  // guards the two below
std::shared_ptr<State> attachment;
bool attachment_decided = false;

// A child forked while another thread held the mutex could never attach.
const int fork_safe = pthread_atfork([] { attachment_mutex.lock(); }, [] { attachment_mutex.unlock(); },
                                     [] { attachment_mutex.unlock(); });

}  // namespace

Lock::Lock(State& state) : state_(state) {
    if (pthread_mutex_lock(&state_.mutex) == EOWNERDEAD) pthread_mutex_consistent(&state_.mutex);
}

Lock::~Lock() { pthread_mutex_unlock(&state_.mutex); }

int create(const char* path, const EpSimConfig& config) {
    if (config.device_count > kMaxDevices) return EINVAL;
    const File file(path, O_RDWR | O_CREAT | O_TRUNC);
    const std::size_t size = size_for(config.device_count);
    if (file.number() < 0 || ftruncate(file.number(), static_cast<off_t>(size)) != 0) return errno;
    const std::shared_ptr<State> state = map(file.number(), size);
    if (state == nullptr) return errno;

    state->config = config;
    initialise_mutex(state->mutex);
    const std::int64_t monotonic = os_clock_ns(CLOCK_MONOTONIC);
    state->clock_ns.store(config.elapsed_ns);
    state->origin_ns = config.virtual_time != 0 ? 0 : monotonic - config.elapsed_ns;
    const std::int64_t offset = config.virtual_time != 0 ? kVirtualEpochNs : os_clock_ns(CLOCK_REALTIME) - monotonic;
    state->wall_steps[0] = {0, offset};
    state->wall_step_count = 1;
    for (std::uint32_t i = 0; i < config.device_count; ++i) initialise(state->device(i), config, i);
    state->magic = kMagic;
    return 0;
}

int attach(const char* path) {
    int error = 0;
    std::shared_ptr<State> state = path == nullptr ? nullptr : open_state(path, error);
    if (error != 0) return error;
    const std::lock_guard<std::mutex> guard(attachment_mutex);
    attachment.swap(state);
    attachment_decided = true;
    return 0;
}

std::shared_ptr<State> attached() {
    const std::lock_guard<std::mutex> guard(attachment_mutex);
    if (!attachment_decided && fork_safe == 0) {
        const char* named = std::getenv("ENERGY_SIM_STATE");
        int error = 0;
        attachment = open_state(named != nullptr ? named : beside_library().c_str(), error);
        attachment_decided = attachment != nullptr;
    }
    return attachment;
}

}  // namespace sim
