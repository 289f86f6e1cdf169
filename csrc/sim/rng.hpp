// Random numbers by position instead of by history: the same (seed, device, purpose, index) gives the same number in
// every process and on every reading, which is what makes two readers of one simulated sensor agree.
#pragma once

#include <cmath>
#include <cstdint>

namespace sim {

enum class Draw : std::uint64_t { kPhase, kBase, kJitter, kLate, kLateness, kNoise, kCost, kInstant, kDear };

struct Dice {
    std::uint64_t seed;
    std::uint64_t device;

    // Uniform in (0, 1).
    double uniform(Draw purpose, std::int64_t index) const {
        std::uint64_t h = mix(seed ^ mix(device + 1));
        h = mix(h ^ mix(static_cast<std::uint64_t>(purpose) + 17));
        h = mix(h ^ static_cast<std::uint64_t>(index));
        return (static_cast<double>(h >> 11) + 0.5) * 0x1p-53;
    }

    // Standard normal.
    double normal(Draw purpose, std::int64_t index) const {
        constexpr double kTwoPi = 6.283185307179586;
        const double radius = std::sqrt(-2.0 * std::log(uniform(purpose, 2 * index)));
        return radius * std::cos(kTwoPi * uniform(purpose, 2 * index + 1));
    }

  private:
    // The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    static std::uint64_t mix(std::uint64_t x) {
        x += 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        return x ^ (x >> 31);
    }
};

}  // namespace sim
