// NVML, opened by name or path. Milliwatts and millijoules end here. Every symbol but nvmlInit_v2 is optional: calling
// a missing one throws NvmlError with code 13. All methods may be called from any thread, and may take as long as the
// driver likes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "library.hpp"
#include "nvml_abi.hpp"
#include "process.hpp"

namespace energy {

struct StampedPower {
    int64_t wall_us;
    double power_w;
};

// A reading of power that the driver makes anew now and then. What PowerUsage is depends on the GPU.
enum class PowerReading { kInstant, kAverage, kUsage };

// What this driver can read on one device, probed once. "Not supported" is data; other failures throw.
struct Capabilities {
    bool energy_counter = false;
    bool power_samples = false;
    bool power_instant = false;
    bool power_average = false;
    bool power_usage = false;
    bool activity = false;                       // GPM
    std::map<std::string, std::string> reasons;  // capability -> why not
};

// Whether a code means that there is no such reading, for this GPU, in this driver or for this user.
bool unavailable(int code) noexcept;

class Nvml {
  public:
    // Loads and initialises; throws LibraryError or NvmlError. NVML counts its users: several Nvml may live at once.
    explicit Nvml(const std::string& path);
    ~Nvml();
    Nvml(const Nvml&) = delete;
    Nvml& operator=(const Nvml&) = delete;

    const std::string& path() const noexcept;
    bool simulated() const noexcept;
    Capabilities probe(const std::string& uuid) const;

    // Initialises again after other code has shut NVML down once too often; handles must then be asked for again.
    void reopen() const;
    abi::Device device(const std::string& uuid) const;
    double energy_j(abi::Device device) const;
    double power_w(abi::Device device, PowerReading reading) const;
    double sm_clock_mhz(abi::Device device) const;
    double temperature_c(abi::Device device) const;
    double enforced_limit_w(abi::Device device) const;
    double requested_limit_w(abi::Device device) const;
    double default_limit_w(abi::Device device) const;
    double utilisation(abi::Device device) const;     // share of time in which anything ran
    int64_t clock_reasons(abi::Device device) const;  // why the clocks are what they are: nvmlClocksEventReasons bits
    // Appends the buffered samples stamped after `last_seen_us` (0: all of them), oldest first.
    void power_samples(abi::Device device, int64_t last_seen_us, std::vector<StampedPower>& samples) const;

    // For those who call the library themselves.
    const Library& library() const noexcept;
    void check(const char* call, int code) const;  // throws NvmlError unless the code is success

  private:
    struct Symbols;
    double limit_w(const char* name, abi::PowerLimit* function, abi::Device device) const;
    [[noreturn]] void fail(const char* call, int code) const;
    template <class Function, class... Arguments>
    void call(const char* name, Function* function, Arguments... arguments) const;

    std::unique_ptr<const Symbols> symbols_;
    Origin origin_;
};

}  // namespace energy
