// NVML's GPU performance monitoring (Hopper and newer): two snapshots of a device's activity, and the means between.
// The driver wants snapshots to be at least 100 ms apart.
#pragma once

#include <array>

#include "nvml.hpp"

namespace energy {

// Means between two snapshots; NaN where the driver does not say.
struct Activity {
    double sm;         // share of the SMs that had work
    double occupancy;  // resident warps over those that would fit
    double tensor;     // share of the tensor pipes' time
    double dram;       // share of the memory's bandwidth
    double nvlink_rx_bytes_per_s, nvlink_tx_bytes_per_s;
};

class Gpm {
  public:
    explicit Gpm(const Nvml& nvml) noexcept;
    ~Gpm();
    Gpm(const Gpm&) = delete;
    Gpm& operator=(const Gpm&) = delete;

    void require(abi::Device device) const;  // throws NvmlError, "not supported", unless the device has GPM
    void snapshot(abi::Device device);       // in place of the older one
    Activity between() const;                // the last two snapshots, which must be of one device

  private:
    void check(const char* call, int code) const { nvml_.check(call, code); }

    const Nvml& nvml_;
    abi::GpmQuerySupport* const query_support_;
    abi::GpmSampleAlloc* const allocate_;
    abi::GpmSampleFree* const free_;
    abi::GpmSampleGet* const get_;
    abi::GpmMetricsGet* const metrics_;
    std::array<abi::GpmSample, 2> samples_{};
    size_t newest_ = 0;
};

}  // namespace energy
