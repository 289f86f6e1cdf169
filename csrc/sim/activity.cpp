#include "activity.hpp"

#include <algorithm>

#include "timeline.hpp"

namespace sim {
namespace {

Activity of_work(const Work& work) {
    const double busy = work.busy_share;
    return {busy, busy * work.compute_share, busy * work.memory_share};
}

Activity of_power(const EpSimProfile& profile, double power_w) {
    const double share = std::clamp((power_w - profile.idle_w) / profile.compute_w, 0.0, 1.0);
    return {share, share, 0.0};
}

}  // namespace

Activity activity(const State& state, const Device& device, std::int64_t start_ns, std::int64_t end_ns) {
    Activity sum = {0.0, 0.0, 0.0};
    for_each_level(device, start_ns, end_ns, [&](std::int64_t from_ns, std::int64_t until_ns, double power_w) {
        const Work* work = work_at(device, from_ns);
        const Activity now = work != nullptr ? of_work(*work) : of_power(state.config.profile, power_w);
        const double share = static_cast<double>(until_ns - from_ns) / static_cast<double>(end_ns - start_ns);
        sum = {sum.sm + share * now.sm, sum.tensor + share * now.tensor, sum.dram + share * now.dram};
    });
    return sum;
}

}  // namespace sim
