#include "gpm.hpp"

#include <cmath>

#include "error.hpp"

namespace energy {
namespace {

constexpr unsigned int kVersion = 1;
constexpr double kBytesPerMib = 1 << 20;

template <class Function, class... Arguments>
int code_of(Function* function, Arguments... arguments) {
    return function != nullptr ? function(arguments...) : abi::kFunctionNotFound;
}

}  // namespace

Gpm::Gpm(const Nvml& nvml) noexcept
    : nvml_(nvml),
      query_support_(nvml.library().find<abi::GpmQuerySupport>("nvmlGpmQueryDeviceSupport")),
      allocate_(nvml.library().find<abi::GpmSampleAlloc>("nvmlGpmSampleAlloc")),
      free_(nvml.library().find<abi::GpmSampleFree>("nvmlGpmSampleFree")),
      get_(nvml.library().find<abi::GpmSampleGet>("nvmlGpmSampleGet")),
      metrics_(nvml.library().find<abi::GpmMetricsGet>("nvmlGpmMetricsGet")) {}

Gpm::~Gpm() {
    for (abi::GpmSample sample : samples_) {
        if (sample != nullptr) code_of(free_, sample);
    }
}

void Gpm::require(abi::Device device) const {
    abi::GpmSupport support{kVersion, 0};
    check("nvmlGpmQueryDeviceSupport", code_of(query_support_, device, &support));
    if (support.supported == 0) check("nvmlGpmQueryDeviceSupport", abi::kNotSupported);
}

void Gpm::snapshot(abi::Device device) {
    abi::GpmSample& oldest = samples_[1 - newest_];
    if (oldest == nullptr) check("nvmlGpmSampleAlloc", code_of(allocate_, &oldest));
    check("nvmlGpmSampleGet", code_of(get_, device, oldest));
    newest_ = 1 - newest_;
}

Activity Gpm::between() const {
    constexpr std::array kIds = {abi::kGpmSmUtil,        abi::kGpmSmOccupancy,
                                 abi::kGpmAnyTensorUtil, abi::kGpmDramBandwidthUtil,
                                 abi::kGpmNvlinkTotalRx, abi::kGpmNvlinkTotalTx};
    abi::GpmMetrics metrics{};
    metrics.version = kVersion;
    metrics.count = kIds.size();
    metrics.older = samples_[1 - newest_];
    metrics.newer = samples_[newest_];
    for (size_t i = 0; i < kIds.size(); ++i) metrics.metrics[i].id = kIds[i];
    check("nvmlGpmMetricsGet", code_of(metrics_, &metrics));
    const auto value = [&](size_t i, double unit) {
        return metrics.metrics[i].code == abi::kSuccess ? metrics.metrics[i].value * unit : std::nan("");
    };
    return {value(0, 1e-2), value(1, 1e-2),         value(2, 1e-2),
            value(3, 1e-2), value(4, kBytesPerMib), value(5, kBytesPerMib)};
}

}  // namespace energy
