#include "timeline.hpp"

#include <cerrno>
#include <cmath>
#include <limits>
#include <tuple>

namespace sim {
namespace {

constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kNone = std::numeric_limits<std::uint64_t>::max();

double joules(double power_w, std::int64_t ns) { return power_w * static_cast<double>(ns) * 1e-9; }

const Work& work(const Device& device, std::uint64_t number) { return device.work[number % kMaxWork]; }

std::uint64_t oldest_work(const Device& device) {
    return device.work_count > kMaxWork ? device.work_count - kMaxWork : 0;
}

bool alike(const Work& one, const Work& other) {
    const auto facts = [](const Work& work) {
        return std::tie(work.power_w, work.clock_mhz, work.memory_share, work.compute_share, work.busy_share);
    };
    return facts(one) == facts(other);
}

// The number of the last stretch of work that began at or before `t_ns`.
std::uint64_t last_begun(const Device& device, std::int64_t t_ns) {
    std::uint64_t low = oldest_work(device);
    std::uint64_t high = device.work_count;
    if (low == high || work(device, low).start_ns > t_ns) return kNone;
    while (high - low > 1) {
        const std::uint64_t middle = low + (high - low) / 2;
        (work(device, middle).start_ns <= t_ns ? low : high) = middle;
    }
    return low;
}

// The script in force at `t_ns`: the first one also rules the time before it.
std::uint32_t play_at(const Device& device, std::int64_t t_ns) {
    const auto* begin = device.plays;
    const auto* later = std::upper_bound(begin, begin + device.play_count, t_ns,
                                         [](std::int64_t t, const Play& play) { return t < play.from_ns; });
    return later == begin ? 0 : static_cast<std::uint32_t>(later - begin) - 1;
}

// Where a script stands `since_ns` after it began.
struct Position {
    const Piece* piece;
    double energy_before_j;  // rounds already played
    std::int64_t offset_ns;  // within the round
    bool last;               // the last piece, which holds
};

Position locate(const Device& device, const Play& play, std::int64_t since_ns) {
    const Piece* first = device.pieces + play.first_piece;
    const Piece* last = first + play.piece_count - 1;
    Position here = {first, 0.0, since_ns, false};
    if (play.repeat) {
        here.offset_ns = since_ns % play.length_ns;
        if (here.offset_ns < 0) here.offset_ns += play.length_ns;
        here.energy_before_j = static_cast<double>((since_ns - here.offset_ns) / play.length_ns) * play.length_j;
    }
    here.piece = std::upper_bound(first, last, here.offset_ns,
                                  [](std::int64_t offset, const Piece& piece) { return offset < piece.end_ns; });
    here.last = !play.repeat && here.piece == last;
    return here;
}

std::int64_t begin_of(const Device& device, const Play& play, const Piece* piece) {
    return piece == device.pieces + play.first_piece ? 0 : (piece - 1)->end_ns;
}

double script_energy_j(const Device& device, std::int64_t t_ns) {
    if (device.play_count == 0) return 0.0;
    const Play& play = device.plays[play_at(device, t_ns)];
    const std::int64_t since = t_ns - play.from_ns;
    if (since < 0 && !play.repeat) return joules(device.pieces[play.first_piece].power_w, since);
    const Position here = locate(device, play, since);
    return play.energy_before_j + here.energy_before_j + here.piece->energy_before_j +
           joules(here.piece->power_w, here.offset_ns - begin_of(device, play, here.piece));
}

Level script_level(const Device& device, std::int64_t t_ns) {
    if (device.play_count == 0) return {0.0, kForever};
    const std::uint32_t number = play_at(device, t_ns);
    const Play& play = device.plays[number];
    const std::int64_t since = t_ns - play.from_ns;
    if (since < 0 && !play.repeat) return {device.pieces[play.first_piece].power_w, play.from_ns};
    const Position here = locate(device, play, since);
    const std::int64_t next = number + 1 < device.play_count ? device.plays[number + 1].from_ns : kForever;
    if (here.last) return {here.piece->power_w, next};
    return {here.piece->power_w, std::min(t_ns + here.piece->end_ns - here.offset_ns, next)};
}

}  // namespace

double energy_j(const Device& device, std::int64_t t_ns) {
    const std::uint64_t number = last_begun(device, t_ns);
    if (number == kNone) {
        return oldest_work(device) > 0 ? std::nan("") : script_energy_j(device, t_ns);
    }
    const Work& last = work(device, number);
    const double energy = last.energy_before_j + joules(last.power_w, std::min(t_ns, last.end_ns) - last.start_ns);
    if (t_ns <= last.end_ns) return energy;
    return energy + script_energy_j(device, t_ns) - script_energy_j(device, last.end_ns);
}

Level level_at(const Device& device, std::int64_t t_ns) {
    const std::uint64_t number = last_begun(device, t_ns);
    if (number != kNone && t_ns < work(device, number).end_ns) {
        return {work(device, number).power_w, work(device, number).end_ns};
    }
    const std::uint64_t next = number == kNone ? oldest_work(device) : number + 1;
    const std::int64_t next_ns = next < device.work_count ? work(device, next).start_ns : kForever;
    const Level level = script_level(device, t_ns);
    return {level.power_w, std::min(level.until_ns, next_ns)};
}

const Work* work_at(const Device& device, std::int64_t t_ns) {
    const std::uint64_t number = last_begun(device, t_ns);
    return number != kNone && t_ns < work(device, number).end_ns ? &work(device, number) : nullptr;
}

std::int64_t idle_at_ns(const Device& device) {
    return device.work_count == 0 ? std::numeric_limits<std::int64_t>::min()
                                  : work(device, device.work_count - 1).end_ns;
}

int play(Device& device, const std::int64_t* duration_ns, const double* power_w, std::uint32_t count, bool repeat,
         std::int64_t from_ns) {
    if (count == 0 || (device.play_count > 0 && from_ns < device.plays[device.play_count - 1].from_ns)) return EINVAL;
    if (device.play_count == kMaxPlays || count > kMaxPieces - device.piece_count) return ENOSPC;
    Play next = {from_ns, 0, 0.0, 0.0, device.piece_count, count, repeat};
    for (std::uint32_t i = 0; i < count; ++i) {
        if (duration_ns[i] <= 0 || !std::isfinite(power_w[i])) return EINVAL;
        const double before_j = next.length_j;
        next.length_ns += duration_ns[i];
        next.length_j += joules(power_w[i], duration_ns[i]);
        device.pieces[next.first_piece + i] = {next.length_ns, before_j, power_w[i]};
    }
    if (device.play_count > 0) next.energy_before_j = script_energy_j(device, from_ns);
    device.plays[device.play_count] = next;
    device.piece_count += count;
    ++device.play_count;
    return 0;
}

void append(Device& device, std::int64_t now_ns, std::int64_t duration_ns, const Cost& cost) {
    const std::int64_t start_ns = std::max(now_ns, idle_at_ns(device));
    Work next = {start_ns,
                 start_ns + duration_ns,
                 cost.power_w,
                 0.0,
                 static_cast<float>(cost.clock_mhz),
                 static_cast<float>(cost.memory_share),
                 static_cast<float>(cost.compute_share),
                 static_cast<float>(cost.busy_share)};
    if (device.work_count > 0) {
        Work& last = device.work[(device.work_count - 1) % kMaxWork];
        if (last.end_ns == start_ns && alike(last, next)) {
            last.end_ns += duration_ns;
            return;
        }
    }
    next.energy_before_j = energy_j(device, start_ns);
    device.work[device.work_count % kMaxWork] = next;
    ++device.work_count;
}

}  // namespace sim
