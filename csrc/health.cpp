#include "health.hpp"

#include <algorithm>
#include <utility>

#include "nvml.hpp"

namespace energy {
namespace {

constexpr int64_t kFirstPauseNs = 1'000'000'000;
constexpr int64_t kLongestPauseNs = 3'500'000'000;  // and a drain later, a GPU that is back is noticed within 5 s

}  // namespace

void Health::worked() noexcept {
    ever_worked_ = true;
    pause_ns_ = 0;
    last_code_ = 0;
}

bool Health::failed(const NvmlError& error, int64_t now_ns) {
    const bool unsupported = error.code() == abi::kNotSupported || error.code() == abi::kFunctionNotFound;
    ended_ = !ever_worked_ && unavailable(error.code());
    pause_ns_ = std::clamp(2 * pause_ns_, kFirstPauseNs, kLongestPauseNs);
    retry_ns_ = now_ns + pause_ns_;
    if (unsupported && !ever_worked_) return false;
    return std::exchange(last_code_, error.code()) != error.code();
}

}  // namespace energy
