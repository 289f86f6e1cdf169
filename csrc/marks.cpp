#include "marks.hpp"

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <utility>

#include "events.hpp"
#include "library.hpp"
#include "process.hpp"
#include "ring.hpp"

namespace energy {
namespace {

constexpr uint64_t kCostEvery = 64;

struct Entry {
    Mark mark;
    Ticket ticket;  // of event null when the mark has none
};

// One thread writes, others read now and then: no need for a locked instruction.
template <class T>
void add(std::atomic<T>& sum, T amount) noexcept {
    sum.store(sum.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}

}  // namespace

struct MarkLog::Impl {
    Impl(std::shared_ptr<const Clock> time, std::string cuda, size_t most_marks, size_t most_events)
        : clock(std::move(time)),
          capacity(most_marks),
          cuda_name(std::move(cuda)),
          events_at_most(most_events),
          fresh(most_marks) {}

    void open(const std::shared_ptr<const Cuda>& cuda) {
        opened = std::make_unique<EventPool>(cuda, clock, events_at_most);
        pool.store(opened.get(), std::memory_order_release);
    }

    // For the marking thread: the pool, once CUDA is in use.
    EventPool* events_now() noexcept {
        if (opened || cuda_name.empty() || !Library::is_loaded(cuda_name, loads)) return opened.get();
        try {
            open(std::make_shared<Cuda>(cuda_name));
        } catch (const std::exception&) {
            cuda_name.clear();  // marks without events are what there is then
        }
        return opened.get();
    }

    void log(const Mark& mark, std::optional<Cuda::Stream> stream) noexcept {
        add<uint64_t>(marks, 1);
        Entry entry{mark, {nullptr, nullptr}};
        const bool room = fresh.size() < fresh.capacity();
        EventPool* const recorder =
            room && stream ? events_now() : nullptr;  // an event of a dropped mark would be lost
        if (recorder != nullptr) {
            entry.ticket = {recorder->record(*stream), *stream};
            add<uint64_t>(entry.ticket.event != nullptr ? events : event_misses, 1);
            if (entry.ticket.event != nullptr && mark.begin == 0) {
                ended_code = mark.code;
                ended_ns = mark.host_ns;
            }
        }
        fresh.push(entry);
    }

    size_t resolve() {
        const std::unique_lock lock(resolving, std::try_to_lock);
        if (!lock) return unresolved.load(std::memory_order_relaxed);
        for (Entry entry; pending.size() < capacity && fresh.pop(entry);) {
            if (entry.ticket.event != nullptr) tickets.push_back(entry.ticket);
            pending.push_back(entry);
        }
        if (EventPool* const settled = pool.load(std::memory_order_acquire)) settled->settle(tickets, times_ns);
        publish();
        unresolved.store(pending.size(), std::memory_order_relaxed);
        return pending.size();
    }

    void publish() {
        size_t used = 0;
        const std::lock_guard lock(handover);
        while (!pending.empty() && resolved.size() < capacity) {
            Entry& entry = pending.front();
            if (entry.ticket.event != nullptr) {
                if (used == times_ns.size()) break;
                const int64_t gpu_ns = times_ns[used++];
                // The device cannot have come to a mark before it was made; the mapping may be some microseconds off.
                entry.mark.gpu_ns = gpu_ns == EventPool::kNoTime ? gpu_ns : std::max(gpu_ns, entry.mark.host_ns);
            }
            resolved.push_back(entry.mark);
            pending.pop_front();
        }
        times_ns.erase(times_ns.begin(), times_ns.begin() + static_cast<std::ptrdiff_t>(used));
    }

    const std::shared_ptr<const Clock> clock;
    const size_t capacity;
    const Origin origin;

    // Of the marking thread, and what it opened for all.
    std::string cuda_name;  // to be looked for; empty if that is over
    unsigned long long loads = 0;
    const size_t events_at_most;
    std::unique_ptr<EventPool> opened;
    std::atomic<EventPool*> pool{nullptr};

    Ring<Entry> fresh;  // from the marking thread to the resolving thread

    // Of the marking thread: the last end of a span that had an event.
    uint16_t ended_code = 0;
    int64_t ended_ns = INT64_MIN / 2;

    std::atomic<uint64_t> marks{0}, events{0}, event_misses{0};
    std::atomic<int64_t> mark_ns{0};
    std::atomic<size_t> unresolved{0};

    std::mutex resolving;  // guards the three below; held across calls of CUDA
    std::deque<Entry> pending;
    std::deque<Ticket> tickets;     // events of `pending` that have not completed
    std::vector<int64_t> times_ns;  // of those that have

    std::mutex handover;  // guards resolved
    std::vector<Mark> resolved;
};

MarkLog::MarkLog(std::shared_ptr<const Clock> clock, std::shared_ptr<const Cuda> cuda, size_t capacity, size_t events)
    : MarkLog(std::move(clock), std::string(), capacity, events) {
    if (cuda) impl_->open(cuda);
}

MarkLog::MarkLog(std::shared_ptr<const Clock> clock, std::string cuda, size_t capacity, size_t events)
    : impl_(std::make_unique<Impl>(std::move(clock), std::move(cuda), capacity, events)) {}

MarkLog::~MarkLog() = default;

void MarkLog::mark(uint16_t code, bool begin, std::optional<Cuda::Stream> stream, int64_t samples,
                   int64_t tokens) noexcept {
    if (!impl_->origin.here()) return;
    const int64_t now = impl_->clock->now_ns();
    impl_->log({now, EventPool::kNoTime, code, begin, samples, tokens}, stream);
    if (impl_->marks.load(std::memory_order_relaxed) % kCostEvery == 0) {
        add(impl_->mark_ns, static_cast<int64_t>(kCostEvery) * (impl_->clock->now_ns() - now));
    }
}

bool MarkLog::wants_event(uint16_t code) const noexcept {
    if (!impl_->origin.here() || impl_->events_now() == nullptr) return false;
    return code != impl_->ended_code || impl_->clock->now_ns() - impl_->ended_ns > kApartNs;
}

void MarkLog::mark_at(uint16_t code, bool begin, int64_t host_ns, int64_t samples, int64_t tokens) noexcept {
    if (impl_->origin.here()) impl_->log({host_ns, EventPool::kNoTime, code, begin, samples, tokens}, std::nullopt);
}

size_t MarkLog::resolve() { return impl_->origin.here() ? impl_->resolve() : 0; }

std::vector<Mark> MarkLog::drain() {
    if (!impl_->origin.here()) return {};
    const std::lock_guard lock(impl_->handover);
    return std::exchange(impl_->resolved, {});
}

MarkStats MarkLog::stats() const {
    MarkStats stats;
    if (!impl_->origin.here()) return stats;
    stats.marks = impl_->marks.load(std::memory_order_relaxed);
    stats.events = impl_->events.load(std::memory_order_relaxed);
    stats.event_misses = impl_->event_misses.load(std::memory_order_relaxed);
    stats.dropped = impl_->fresh.dropped();
    stats.mark_ns = impl_->mark_ns.load(std::memory_order_relaxed);
    if (const EventPool* const pool = impl_->pool.load(std::memory_order_acquire))
        stats.last_error = pool->last_error();
    return stats;
}

}  // namespace energy
