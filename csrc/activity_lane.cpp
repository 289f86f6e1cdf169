#include "activity_lane.hpp"

namespace energy {
namespace {

constexpr int64_t kShortestNs = 100'000'000;  // NVML wants its snapshots at least this far apart

}  // namespace

void ActivityLane::open(abi::Device device) noexcept {
    device_ = device;
    start_ns_ = 0;
}

void ActivityLane::drain() {
    const int64_t before = clock_.now_ns();
    const int64_t start = start_ns_;
    if (start != 0 && before - start < kShortestNs) return;
    if (start == 0) gpm_.require(device_);
    start_ns_ = 0;  // a snapshot that fails leaves nothing to build on
    gpm_.snapshot(device_);
    const int64_t taken = before + (clock_.now_ns() - before) / 2;
    if (start != 0) {
        const Activity seen = gpm_.between();
        ring.push({start, taken, seen.sm, seen.occupancy, seen.tensor, seen.dram, seen.nvlink_rx_bytes_per_s,
                   seen.nvlink_tx_bytes_per_s});
    }
    start_ns_ = taken;
    driver_ns.fetch_add(clock_.now_ns() - before, std::memory_order_relaxed);
}

}  // namespace energy
