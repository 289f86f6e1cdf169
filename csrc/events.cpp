#include "events.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "process.hpp"
#include "ring.hpp"

namespace energy {
namespace {

constexpr size_t kChunk = 256;
constexpr int64_t kReferencePeriodNs = 10'000'000'000;  // elapsed time is a float of milliseconds: 1 us after 10 s
constexpr int64_t kOldestReferenceNs = 60'000'000'000;
constexpr int64_t kWideBracketNs = 100'000;  // a preempted reference is worth less than one of a minute ago
constexpr int64_t kReferencePatienceNs = 2'000'000;
constexpr int kMostSpins = 20'000;  // where the clock is simulated, patience alone need not end
constexpr unsigned kNonBlockingStream = 1;
constexpr unsigned kTimedEvent = 0;
constexpr int kRelaxedCapture = 2;

bool about_this_stream_only(int code) {
    return code == Cuda::kInvalidHandle || (code >= Cuda::kCaptureFirst && code <= Cuda::kCaptureLast);
}

// For the life of this object the calling thread has `context`, and its calls break no stream capture.
class InContext {
  public:
    InContext(const Cuda& cuda, Cuda::Context context) : cuda_(cuda) {
        exchange_mode();
        code_ = cuda_.get_context(&before_);
        if (code_ == Cuda::kSuccess) code_ = cuda_.set_context(context);
    }
    ~InContext() {
        if (code_ == Cuda::kSuccess) cuda_.set_context(before_);
        exchange_mode();
    }
    InContext(const InContext&) = delete;
    InContext& operator=(const InContext&) = delete;

    int code() const noexcept { return code_; }

  private:
    void exchange_mode() {
        if (cuda_.exchange_capture_mode != nullptr) cuda_.exchange_capture_mode(&mode_);
    }

    const Cuda& cuda_;
    Cuda::Context before_ = nullptr;
    int mode_ = kRelaxedCapture;
    int code_ = Cuda::kSuccess;
};

}  // namespace

struct EventPool::Shared {
    Shared(std::shared_ptr<const Cuda> library, std::shared_ptr<const Clock> time, size_t most)
        : cuda(std::move(library)), clock(std::move(time)), most_events(most), free(most), alive(cuda->has_events()) {}

    // Keeps an error's text for last_error(), and ends the pool unless only one stream is at fault.
    bool check(const char* call, int code) noexcept {
        if (code == Cuda::kSuccess) return true;
        failed_code.store(code, std::memory_order_relaxed);
        failed_call.store(call, std::memory_order_release);
        if (!about_this_stream_only(code)) alive.store(false, std::memory_order_relaxed);
        return false;
    }

    Cuda::Event make() noexcept {
        Cuda::Event event = nullptr;
        return check("cuEventCreate", cuda->create_event(&event, kTimedEvent)) ? event : nullptr;
    }

    const std::shared_ptr<const Cuda> cuda;
    const std::shared_ptr<const Clock> clock;
    const size_t most_events;
    const Origin origin;
    Ring<Cuda::Event> free;                       // from the resolving thread to the marking thread
    std::atomic<Cuda::Context> context{nullptr};  // set once, after the first chunk is made
    std::atomic<uint64_t> found_empty{0};
    std::atomic<bool> alive;
    std::atomic<const char*> failed_call{nullptr};
    std::atomic<int> failed_code{0};
};

// What only the marking thread touches.
class EventPool::Marking {
  public:
    explicit Marking(Shared& shared) : shared_(shared) {}

    Cuda::Event record(Cuda::Stream stream) noexcept {
        const Cuda& cuda = *shared_.cuda;
        Cuda::Context current = nullptr;
        if (cuda.get_context(&current) != Cuda::kSuccess || current == nullptr) return nullptr;
        // A capture is no fault. While one is under way elsewhere, asking about the default stream is an error: no
        // event.
        int capturing = 0;
        if (cuda.is_capturing(stream, &capturing) != Cuda::kSuccess || capturing != 0) return nullptr;
        if (context_ == nullptr && !adopt(current)) return nullptr;
        if (current != context_) return nullptr;
        const Cuda::Event event = take();
        if (event == nullptr) return nullptr;
        if (shared_.check("cuEventRecord", cuda.record_event(event, stream))) return event;
        spare_[spare_count_++] = event;
        return nullptr;
    }

    // The first chunk; what became of its events since does not matter to their destruction.
    const std::array<Cuda::Event, kChunk>& made() const noexcept { return made_; }

  private:
    bool adopt(Cuda::Context context) noexcept {
        while (spare_count_ < std::min(kChunk, shared_.most_events)) {
            const Cuda::Event event = shared_.make();
            if (event == nullptr) return false;
            made_[spare_count_] = spare_[spare_count_] = event;
            ++spare_count_;
        }
        context_ = context;
        shared_.context.store(context, std::memory_order_release);
        return true;
    }

    Cuda::Event take() noexcept {
        if (spare_count_ > 0) return spare_[--spare_count_];
        Cuda::Event event = nullptr;
        if (!shared_.free.pop(event)) shared_.found_empty.fetch_add(1, std::memory_order_relaxed);
        return event;
    }

    Shared& shared_;
    Cuda::Context context_ = nullptr;
    std::array<Cuda::Event, kChunk> made_{};
    std::array<Cuda::Event, kChunk> spare_{};  // never more than were taken from it or, one at a time, from the ring
    size_t spare_count_ = 0;
};

// What only the resolving thread touches; each call inside InContext.
class EventPool::Resolving {
  public:
    explicit Resolving(Shared& shared) : shared_(shared), cuda_(*shared.cuda) {}

    void settle(std::deque<Ticket>& tickets, std::vector<int64_t>& times_ns) {
        refill(tickets.size() - left_);
        if (!tickets.empty() && renew_reference()) take_completed(tickets, times_ns);
        left_ = tickets.size();
    }

    void destroy() {
        for (const Cuda::Event event : made_) cuda_.destroy_event(event);
        if (reference_.event != nullptr) cuda_.destroy_event(reference_.event);
        for (const Reference& trial : trials_) {
            if (trial.event != nullptr) cuda_.destroy_event(trial.event);
        }
        if (stream_ != nullptr) cuda_.destroy_stream(stream_);
    }

  private:
    struct Reference {
        Cuda::Event event = nullptr;  // completed at host_ns, to within width_ns
        int64_t host_ns = 0;
        int64_t width_ns = INT64_MAX;
    };

    // Keeps twice as many events free as were used since the last time, and doubles the pool once it ran empty.
    void refill(size_t used) {
        const uint64_t empty = shared_.found_empty.load(std::memory_order_relaxed);
        size_t wanted = std::max(2 * kChunk + kReserve, 2 * used);
        if (empty != found_empty_) wanted = std::max(wanted, made_.size() + kChunk);
        found_empty_ = empty;
        while (shared_.free.size() < wanted && made_.size() + kChunk < shared_.most_events) {
            const Cuda::Event event = shared_.make();
            if (event == nullptr) return;
            made_.push_back(event);
            shared_.free.push(event);
        }
    }

    bool renew_reference() {
        const int64_t age_ns = shared_.clock->now_ns() - reference_.host_ns;
        const bool have = reference_.event != nullptr;
        if (have && age_ns < kReferencePeriodNs) return true;
        if (!prepare()) return false;
        Reference* best = nullptr;
        for (Reference& trial : trials_) {
            if (measure(trial) && (best == nullptr || trial.width_ns < best->width_ns)) best = &trial;
        }
        if (best == nullptr) return have;
        if (!have || best->width_ns <= kWideBracketNs || age_ns > kOldestReferenceNs) std::swap(reference_, *best);
        return true;
    }

    bool prepare() {
        if (stream_ == nullptr && !shared_.check("cuStreamCreate", cuda_.create_stream(&stream_, kNonBlockingStream))) {
            return false;
        }
        for (Reference& trial : trials_) {
            if (trial.event == nullptr) trial.event = shared_.make();
            if (trial.event == nullptr) return false;
        }
        return true;
    }

    bool measure(Reference& reference) {
        const int64_t before = shared_.clock->now_ns();
        if (!shared_.check("cuEventRecord", cuda_.record_event(reference.event, stream_))) return false;
        for (int spin = 0; spin < kMostSpins; ++spin) {
            const int code = cuda_.query_event(reference.event);
            const int64_t after = shared_.clock->now_ns();
            if (code == Cuda::kSuccess) {
                reference.width_ns = after - before;
                reference.host_ns = before + reference.width_ns / 2;
                return true;
            }
            if (code != Cuda::kNotReady) return shared_.check("cuEventQuery", code);
            if (after - before > kReferencePatienceNs) break;
        }
        return false;
    }

    void take_completed(std::deque<Ticket>& tickets, std::vector<int64_t>& times_ns) {
        while (!tickets.empty() && shared_.alive.load(std::memory_order_relaxed)) {
            const auto other = std::find_if(tickets.begin(), tickets.end(), [&](const Ticket& ticket) {
                return ticket.stream != tickets.front().stream;
            });
            const auto in_order = static_cast<size_t>(other - tickets.begin());
            const size_t done = completed(tickets, in_order);
            for (size_t i = 0; i < done; ++i) {
                times_ns.push_back(time_of(tickets.front().event));
                shared_.free.push(tickets.front().event);
                tickets.pop_front();
            }
            if (done < in_order) return;
        }
    }

    // How many of the first `count` tickets, all of one stream, have completed. Mostly it is all, or all but a few: so
    // from the newest back in doubling strides, then by halves.
    size_t completed(const std::deque<Ticket>& tickets, size_t count) {
        if (is_complete(tickets[count - 1].event)) return count;
        size_t done = 0;             // tickets before this one have completed
        size_t pending = count - 1;  // this one has not
        for (size_t stride = 1; pending > 0; stride *= 2) {
            const size_t probe = pending - std::min(stride, pending);
            if (is_complete(tickets[probe].event)) {
                done = probe + 1;
                break;
            }
            pending = probe;
        }
        while (done < pending) {
            const size_t middle = done + (pending - done) / 2;
            if (is_complete(tickets[middle].event)) {
                done = middle + 1;
            } else {
                pending = middle;
            }
        }
        return done;
    }

    bool is_complete(Cuda::Event event) {
        const int code = cuda_.query_event(event);
        return code != Cuda::kNotReady && shared_.check("cuEventQuery", code);
    }

    int64_t time_of(Cuda::Event event) {
        float elapsed_ms = 0;
        if (!shared_.check("cuEventElapsedTime", cuda_.elapsed_ms(&elapsed_ms, reference_.event, event)))
            return kNoTime;
        return reference_.host_ns + std::llround(static_cast<double>(elapsed_ms) * 1e6);
    }

    Shared& shared_;
    const Cuda& cuda_;
    Cuda::Stream stream_ = nullptr;
    Reference reference_;
    std::array<Reference, 3> trials_;
    std::vector<Cuda::Event> made_;
    size_t left_ = 0;  // tickets that the last call left
    uint64_t found_empty_ = 0;
};

EventPool::EventPool(std::shared_ptr<const Cuda> cuda, std::shared_ptr<const Clock> clock, size_t most_events)
    : shared_(std::make_unique<Shared>(std::move(cuda), std::move(clock), most_events)),
      marking_(std::make_unique<Marking>(*shared_)),
      resolving_(std::make_unique<Resolving>(*shared_)) {}

EventPool::~EventPool() {
    const Cuda::Context context = shared_->context.load(std::memory_order_acquire);
    if (context == nullptr || !shared_->origin.here() || !shared_->alive.load(std::memory_order_relaxed)) return;
    const InContext in_context(*shared_->cuda, context);
    if (in_context.code() != Cuda::kSuccess) return;  // the context took its events with it
    for (const Cuda::Event event : marking_->made()) {
        if (event != nullptr) shared_->cuda->destroy_event(event);
    }
    resolving_->destroy();
}

Cuda::Event EventPool::record(Cuda::Stream stream) noexcept {
    return shared_->alive.load(std::memory_order_relaxed) ? marking_->record(stream) : nullptr;
}

void EventPool::settle(std::deque<Ticket>& tickets, std::vector<int64_t>& times_ns) {
    const Cuda::Context context = shared_->context.load(std::memory_order_acquire);
    if (context == nullptr) return;  // no event was ever recorded
    if (shared_->alive.load(std::memory_order_relaxed)) {
        const InContext in_context(*shared_->cuda, context);
        if (shared_->check("cuCtxSetCurrent", in_context.code())) resolving_->settle(tickets, times_ns);
    }
    if (shared_->alive.load(std::memory_order_relaxed)) return;
    times_ns.insert(times_ns.end(), tickets.size(), kNoTime);  // nobody will ever know
    tickets.clear();
}

std::string EventPool::last_error() const {
    const char* call = shared_->failed_call.load(std::memory_order_acquire);
    return call != nullptr ? shared_->cuda->describe(call, shared_->failed_code.load(std::memory_order_relaxed)) : "";
}

}  // namespace energy
