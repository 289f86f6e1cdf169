// A ring between one producing and one consuming thread. Neither ever waits: a full ring drops the new item and counts
// it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace energy {

template <class T>
class Ring {
  public:
    // Holds at least `capacity` items. All memory is taken here, but not written to: a page costs nothing until used.
    explicit Ring(size_t capacity) : mask_(round_up(capacity) - 1), slots_(new T[mask_ + 1]) {
        static_assert(std::is_trivially_default_constructible_v<T>);
    }

    // Producer only. False when the ring was full: the item is dropped and counted.
    bool push(const T& item) noexcept {
        const size_t head = head_.load(std::memory_order_relaxed);
        if (head - tail_.load(std::memory_order_acquire) == capacity()) {
            dropped_.fetch_add(1, std::memory_order_relaxed);
            return false;
        }
        slots_[head & mask_] = item;
        head_.store(head + 1, std::memory_order_release);
        return true;
    }

    // Consumer only. False when the ring is empty.
    bool pop(T& item) noexcept {
        const size_t tail = tail_.load(std::memory_order_relaxed);
        if (head_.load(std::memory_order_acquire) == tail) return false;
        item = slots_[tail & mask_];
        tail_.store(tail + 1, std::memory_order_release);
        return true;
    }

    // Any thread; exact for the producer and the consumer as far as their own side goes.
    size_t size() const noexcept {
        const size_t tail = tail_.load(std::memory_order_acquire);
        return head_.load(std::memory_order_acquire) - tail;
    }
    size_t capacity() const noexcept { return mask_ + 1; }
    uint64_t dropped() const noexcept { return dropped_.load(std::memory_order_relaxed); }

  private:
    static size_t round_up(size_t wanted) {
        size_t size = 1;
        while (size < wanted) size *= 2;
        return size;
    }

    const size_t mask_;
    const std::unique_ptr<T[]> slots_;
    alignas(64) std::atomic<size_t> head_{0};  // next slot to write
    alignas(64) std::atomic<size_t> tail_{0};  // next slot to read
    alignas(64) std::atomic<uint64_t> dropped_{0};
};

}  // namespace energy
