// A driver library that fails as FAKE_NVML says before it shows any GPU: a return code, "hang" or "crash".
#include <unistd.h>

#include <cstdlib>
#include <cstring>

extern "C" {

int nvmlInit_v2() {
    const char* how = std::getenv("FAKE_NVML");
    if (how == nullptr) return 0;
    if (std::strcmp(how, "crash") == 0) std::abort();
    while (std::strcmp(how, "hang") == 0) sleep(60);
    return std::atoi(how);
}

int nvmlInitWithFlags(unsigned) { return nvmlInit_v2(); }

int nvmlShutdown() { return 0; }

const char* nvmlErrorString(int code) { return code == 18 ? "Driver/library version mismatch" : "an error"; }
}
