// The ways in which a driver or the kernel fails us. Bindings turn them into energy_plugins.errors.
#pragma once

#include <stdexcept>
#include <string>
#include <system_error>

namespace energy {

// A driver library, or a symbol without which it is of no use, is not there.
class LibraryError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// A call of NVML failed: "nvmlDeviceGetPowerUsage: GPU is lost (15)".
class NvmlError : public std::runtime_error {
  public:
    NvmlError(const std::string& call, int code, const std::string& reason)
        : std::runtime_error(call + ": " + reason + " (" + std::to_string(code) + ")"), call_(call), code_(code) {}

    const std::string& call() const noexcept { return call_; }
    int code() const noexcept { return code_; }

  private:
    std::string call_;
    int code_;
};

// An energy counter of the CPU cannot be read: "/sys/class/powercap/...: Permission denied".
class CounterError : public std::runtime_error {
  public:
    CounterError(const std::string& what, int error)
        : std::runtime_error(what + ": " + std::generic_category().message(error)), error_(error) {}

    int error() const noexcept { return error_; }  // an errno; EBADMSG where what was read is no number

  private:
    int error_;
};

}  // namespace energy
