// The log of marks: what the training thread was doing, in host time and, on CUDA, in GPU time.
//
// mark() and wants_event() are for the training thread (one at a time): they neither lock, wait nor allocate, but that
// one of them opens CUDA, once; until then they ask the loader whether CUDA is there. resolve() is for the background;
// drain() for whoever collects. In a forked child every call does nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "clock.hpp"
#include "cuda.hpp"

namespace energy {

struct Mark {
    int64_t host_ns;
    int64_t gpu_ns;  // when the device came to the mark; -1 when there was no event
    uint16_t code;
    uint8_t begin;
    int64_t samples;
    int64_t tokens;
};

struct MarkStats {
    uint64_t marks = 0;
    uint64_t events = 0;
    uint64_t dropped = 0;       // marks lost because nobody resolved or drained
    uint64_t event_misses = 0;  // marks that asked for an event and got none
    int64_t mark_ns = 0;        // cost of all calls, estimated from every 64th
    std::string last_error;     // of CUDA; empty when there was none
};

class MarkLog {
  public:
    static constexpr int64_t kApartNs = 1'000'000;
    static constexpr size_t kMarks = 65536, kEvents = 8192;  // enough for any training

    MarkLog(std::shared_ptr<const Clock> clock, std::shared_ptr<const Cuda> cuda, size_t capacity, size_t events);
    // CUDA is opened once this process has loaded its library: without it there is no context, and it takes megabytes.
    MarkLog(std::shared_ptr<const Clock> clock, std::string cuda, size_t capacity, size_t events);
    ~MarkLog();
    MarkLog(const MarkLog&) = delete;
    MarkLog& operator=(const MarkLog&) = delete;

    // Now; with a stream, when the work queued on it so far will be done, too.
    void mark(uint16_t code, bool begin, std::optional<Cuda::Stream> stream, int64_t samples, int64_t tokens) noexcept;
    // Whether the beginning of a span of this kind needs an event of its own. Not if one has ended, with an event, less
    // than kApartNs ago: in so short a time nothing else was queued, and the device comes to both marks at once.
    bool wants_event(uint16_t code) const noexcept;
    void mark_at(uint16_t code, bool begin, int64_t host_ns, int64_t samples = -1, int64_t tokens = -1) noexcept;
    size_t resolve();           // returns the marks still unresolved; does nothing while another thread is at it
    std::vector<Mark> drain();  // resolved marks in order, up to the first whose event is not
    MarkStats stats() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace energy
