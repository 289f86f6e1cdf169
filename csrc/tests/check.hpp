// The little that these programs need: a check that names its place, and a list of tests to run in order.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                      \
        }                                                                                      \
    } while (false)

#define RUN(test)                     \
    do {                              \
        std::printf("  %s\n", #test); \
        std::fflush(stdout);          \
        test();                       \
    } while (false)
