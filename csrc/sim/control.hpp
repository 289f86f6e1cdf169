// The controls of the simulation, as a C interface for energy_plugins.testing (ctypes) and, for the clock, csrc.
// All times are CLOCK_MONOTONIC nanoseconds. A function that returns int returns 0 or an errno.
#pragma once

#include <cstdint>

#define EP_SIM_API extern "C" __attribute__((visibility("default")))

// What kind of GPU is simulated. energy_plugins/testing/profiles.py mirrors the layout.
struct EpSimProfile {
    char name[64];
    double idle_w;
    double compute_w;  // drawn on top of idle by arithmetic alone, at full clock
    double memory_w;   // drawn on top of idle by memory traffic alone
    double ops_per_s;
    double bytes_per_s;
    double launch_s;  // device time each kernel costs beside its work
    double min_limit_w;
    double max_limit_w;
    double min_clock_mhz;
    double max_clock_mhz;
    double memory_bytes;
    double compute_capability;  // 9.0
    double usage_window_s;      // PowerUsage is the mean over so long
    double power_age_s;         // how old these are when they appear
    double power_refresh_s;     // of PowerUsage and of the power fields
    double multiprocessors;
    double shared_bytes;  // memory that the threads of one multiprocessor may share
    double l2_bytes;
    double memory_bus_bits;
    double memory_clock_mhz;
};

struct EpSimConfig {
    EpSimProfile profile;
    std::uint64_t seed;
    std::int64_t elapsed_ns;  // how long ago the scripts began
    std::uint32_t device_count;
    std::int32_t virtual_time;
    std::int32_t contexts;  // whether CUDA answers as initialised, with a context on every thread
};

enum EpSimFaultKind : std::int32_t {
    kNoPermission,  // call: one function, or "" for every one that changes the device
    kGpuLost,
    kHang,  // call takes `amount` seconds longer
    kMissingSymbol,
    kNoSampleBuffer,
    kNoCounter,
    kCounterReset,    // at from_ns
    kNotSupported,    // call: one function, or the name of one field of nvmlDeviceGetFieldValues
    kNoProcesses,     // none is listed, whoever computes
    kForeignPids,     // they are listed by numbers of another pid namespace
    kCounterJump,     // by `amount` joules, at from_ns
    kDriverMismatch,  // NVML and the kernel's driver are of different versions
    kForeignLimit,    // another limiter holds the device at `amount` watts, whatever is asked for
    kIgnored,  // call: one function, or "" for every one that changes the device; it succeeds and changes nothing
    kMig,      // divided into slices, as far as the mode tells
    kMps,      // whoever computes does so through MPS
};

struct EpSimFault {
    EpSimFaultKind kind;
    char call[60];
    std::int64_t from_ns;
    std::int64_t until_ns;
    double amount;
};

EP_SIM_API const char* ep_sim_version();
EP_SIM_API int ep_sim_create(const char* path, const EpSimConfig* config);
EP_SIM_API int ep_sim_attach(const char* path);

EP_SIM_API std::int64_t ep_sim_monotonic_ns();
EP_SIM_API std::int64_t ep_sim_wall_ns();
EP_SIM_API std::int64_t ep_sim_origin_ns();
EP_SIM_API void ep_sim_advance(std::int64_t ns);  // virtual time only; negative is ignored
EP_SIM_API int ep_sim_step_wall_clock(std::int64_t ns);
// The machine sleeps: the monotonic clock stands still, the wall clock goes on.
EP_SIM_API int ep_sim_suspend(std::int64_t ns);
EP_SIM_API std::int64_t ep_sim_suspended_ns();  // in all

EP_SIM_API int ep_sim_uuid(std::uint32_t device, char* text, std::uint32_t size);
EP_SIM_API int ep_sim_play(std::uint32_t device, const std::int64_t* duration_ns, const double* power_w,
                           std::uint32_t count, int repeat, std::int64_t from_ns);
// Queues work; when the queue is full returns the ns until there is room and queues nothing; negative: an errno.
EP_SIM_API std::int64_t ep_sim_launch(std::uint32_t device, double ops, double bytes);
EP_SIM_API std::int64_t ep_sim_idle_at_ns(std::uint32_t device);  // when the queued work ends (in the past if idle)
// The truth. NaN where the timeline no longer reaches back that far.
EP_SIM_API double ep_sim_energy_j(std::uint32_t device, std::int64_t start_ns, std::int64_t end_ns);
EP_SIM_API int ep_sim_inject(std::uint32_t device, const EpSimFault* fault);
EP_SIM_API int ep_sim_heal(std::uint32_t device);  // lets go of calls that hang; what the counter did is done
// For the test of what a killed process leaves behind: takes the state's lock and never gives it back.
EP_SIM_API int ep_sim_seize_lock();
