// Reads the clock, temperature, limits, utilisation and clock-event reasons of one device.
//
// What a field costs differs by the field and by the moment: 10 us of CPU, 0.4 ms always, or 1.5 ms now and then
// (H200). So each has its own pace: every second if it is cheap, else as often as kShare of a core allows, from the
// mean of what it cost lately. Between its reads it keeps its last value, which is never older than kLongestPeriodNs.
//
// One thread at a time drives a lane, another may drain its ring and read its counts. A field that this driver, card or
// user does not have stays NaN (reasons: -1) and is asked for once; probe() says why. When no field can be read,
// NvmlError is thrown out of the lane, which is then as good as before.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include "clock.hpp"
#include "error.hpp"
#include "nvml.hpp"
#include "ring.hpp"

namespace energy {

struct StateReading {
    int64_t t_ns;
    double sm_clock_mhz, temperature_c, enforced_limit_w, requested_limit_w, utilisation;
    int64_t clock_reasons;
};

class StateLane {
  public:
    static constexpr int64_t kPeriodNs = 1'000'000'000;
    static constexpr int64_t kLongestPeriodNs = 30'000'000'000;
    static constexpr int64_t kShare = 40'000;  // one in so many: 0.0025 % of a core for each field

    // With `always` every field is read at every look, whatever it costs.
    StateLane(const Nvml& nvml, const Clock& clock, size_t capacity, bool always)
        : ring(capacity), nvml_(nvml), clock_(clock), always_(always) {}
    void open(abi::Device device) noexcept { device_ = device; }
    void forget() noexcept;  // which fields are absent, and all else that was learned
    void drain();            // to be called once a kPeriodNs; does nothing within half of that after a reading

    Ring<StateReading> ring;
    std::atomic<int64_t> driver_ns{0};

  private:
    static constexpr size_t kFields = 6;

    struct Pace {
        int64_t due_ns = INT64_MIN / 2;
        int64_t mean_ns = 0;  // what a read cost lately
        int64_t reads = 0;
        bool absent = false;

        void took(int64_t cost_ns) noexcept;
        int64_t period_ns() const noexcept;
    };
    struct Look {  // what became of the fields that were due
        int64_t t_ns;
        bool any = false;
        std::optional<NvmlError> trouble;
    };

    template <class Value>
    void read(size_t which, Value (Nvml::*call)(abi::Device) const, Value missing, Value& value, Look& look);

    const Nvml& nvml_;
    const Clock& clock_;
    const bool always_;
    abi::Device device_ = nullptr;
    int64_t last_ns_ = INT64_MIN / 2;
    std::array<Pace, kFields> paces_{};
    StateReading latest_ = kUnknown;

    static const StateReading kUnknown;
};

}  // namespace energy
