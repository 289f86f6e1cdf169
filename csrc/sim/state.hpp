// What the simulated GPUs of one simulation are, in memory mapped by every process that takes part.
//
// The file is sparse: a device reserves room for a million pieces of work and of script, and pays only for what it
// uses. Everything behind `mutex` is read and written under `Lock`; each change becomes valid with its last store (a
// count, an end), so a process killed in the middle leaves a state the next owner can simply go on with.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "control.hpp"
#include "rng.hpp"

namespace sim {

constexpr std::uint32_t kMaxDevices = 64;
constexpr std::uint64_t kMaxWork = 1u << 20;
constexpr std::uint32_t kMaxPieces = 1u << 20;
constexpr std::uint32_t kMaxPlays = 4096;
constexpr std::uint32_t kMaxFaults = 64;
constexpr std::uint32_t kMaxWallSteps = 64;
constexpr std::uint32_t kMaxClients = 64;
constexpr std::uint64_t kQueueDepth = 1024;  // kernels a CUDA stream takes before a launch blocks

// A stretch of launched work; neighbours that draw the same power are one stretch.
struct Work {
    std::int64_t start_ns;
    std::int64_t end_ns;
    double power_w;
    double energy_before_j;  // everything the device drew up to start_ns
    float clock_mhz;
    float memory_share;
    float compute_share;  // of the time that it keeps the device busy
    float busy_share;     // the rest is launching
};

struct Piece {
    std::int64_t end_ns;  // from the beginning of its script
    double energy_before_j;
    double power_w;
};

// One script and when it took over.
struct Play {
    std::int64_t from_ns;
    std::int64_t length_ns;
    double length_j;
    double energy_before_j;  // what the scripts before it would have drawn, had there never been any work
    std::uint32_t first_piece;
    std::uint32_t piece_count;
    bool repeat;
};

struct Fault {
    EpSimFault what;
    bool active;
};

struct WallStep {
    std::int64_t from_ns;
    std::int64_t offset_ns;  // wall clock minus monotonic clock
};

struct Device {
    char uuid[48];
    Dice dice;
    double limit_w;
    double locked_mhz;  // 0: not locked
    std::int32_t persistence;
    std::int32_t clients[kMaxClients];  // processes that launched work here
    std::atomic<std::int64_t> costs_drawn;
    Fault faults[kMaxFaults];
    std::uint64_t kernel_count;
    std::int64_t kernel_end_ns[kQueueDepth];
    std::uint32_t play_count;
    std::uint32_t piece_count;
    std::uint64_t work_count;  // ever; the last kMaxWork are kept
    Play plays[kMaxPlays];
    Piece pieces[kMaxPieces];
    Work work[kMaxWork];
};

struct State {
    std::uint64_t magic;
    EpSimConfig config;
    std::int64_t origin_ns;
    std::atomic<std::int64_t> clock_ns;  // virtual time only
    std::atomic<std::int64_t> suspended_ns;
    std::uint32_t wall_step_count;
    WallStep wall_steps[kMaxWallSteps];
    pthread_mutex_t mutex;

    Device& device(std::uint32_t index) { return reinterpret_cast<Device*>(this + 1)[index]; }
    const Device& device(std::uint32_t index) const { return reinterpret_cast<const Device*>(this + 1)[index]; }
};

// Holds the state's mutex; takes it over from an owner that died.
class Lock {
  public:
    explicit Lock(State& state);
    ~Lock();
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

  private:
    State& state_;
};

// Writes a new state file. Returns 0 or an errno.
int create(const char* path, const EpSimConfig& config);

// Maps `path` as this process's simulation; nullptr lets go of it. Returns 0 or an errno.
int attach(const char* path);

// This process's simulation: the one attached, else the one named by ENERGY_SIM_STATE, else energy-sim-state beside
// this library, else none. Stays mapped for as long as the caller holds it, whatever attach() does meanwhile.
std::shared_ptr<State> attached();

}  // namespace sim
