// The ring alone. With -DPLANT_BUG it is used wrongly, which a sanitizer must find: TSan the plain counter beside it,
// ASan the slot past the end.
#include <thread>
#include <vector>

#include "../ring.hpp"
#include "check.hpp"

namespace {

using energy::Ring;

void drops_are_counted() {
    Ring<int> ring(3);
    CHECK(ring.capacity() == 4);
    for (int i = 0; i < 6; ++i) CHECK(ring.push(i) == (i < 4));
    CHECK(ring.dropped() == 2);
    int item = -1;
    for (int i = 0; i < 4; ++i) CHECK(ring.pop(item) && item == i);
    CHECK(!ring.pop(item));
}

void two_threads_keep_order() {
    constexpr uint64_t kItems = 200'000;
    struct Item {
        uint64_t number;
        uint64_t square;
    };
    Ring<Item> ring(64);
    std::thread producer([&ring] {
        for (uint64_t i = 1; i <= kItems; ++i) ring.push({i, i * i});
    });
    uint64_t last = 0;
    uint64_t received = 0;
    for (Item item{}; last < kItems && received + ring.dropped() < kItems;) {
        if (!ring.pop(item)) continue;
        CHECK(item.number > last && item.square == item.number * item.number);
        last = item.number;
        ++received;
    }
    producer.join();
    for (Item item{}; ring.pop(item);) ++received;
    CHECK(received + ring.dropped() == kItems);
}

#ifdef PLANT_BUG
void counts_without_synchronisation() {
    Ring<int> ring(64);
    int pushed = 0;
    std::thread producer([&] { pushed += ring.push(1) ? 1 : 0; });
    for (int item = 0; !ring.pop(item);) continue;
    std::printf("%d\n", pushed);
    producer.join();
}

void reads_past_the_end() {
    const std::vector<int> slots(4);
    const volatile int* data = slots.data();
    std::printf("%d\n", data[4]);
}
#endif

}  // namespace

int main() {
#ifdef PLANT_BUG
    RUN(counts_without_synchronisation);
    RUN(reads_past_the_end);
#endif
    RUN(drops_are_counted);
    RUN(two_threads_keep_order);
}
