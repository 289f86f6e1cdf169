#include "library.hpp"

#include <dlfcn.h>
#include <link.h>

#include "error.hpp"

namespace energy {
namespace {

// How many libraries this process has loaded so far.
unsigned long long loaded_so_far() noexcept {
    unsigned long long loads = 0;
    const auto first = [](dl_phdr_info* info, size_t, void* found) {
        *static_cast<unsigned long long*>(found) = info->dlpi_adds;
        return 1;
    };
    dl_iterate_phdr(first, &loads);
    return loads;
}

}  // namespace

Library::Library(const std::string& path, const std::string& remedy)
    : path_(path), handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) {
    if (handle_ == nullptr) {
        const char* reason = dlerror();
        throw LibraryError("cannot load " + path + ": " + (reason != nullptr ? reason : "unknown reason") + ". " +
                           remedy);
    }
}

bool Library::is_loaded(const std::string& path, unsigned long long& loads) noexcept {
    const unsigned long long now = loaded_so_far();
    if (now == loads) return false;
    loads = now;
    void* handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);  // searches the disk if it is not loaded: 20 us
    if (handle != nullptr) dlclose(handle);
    return handle != nullptr;
}

void* Library::symbol(const char* name) const noexcept { return dlsym(handle_, name); }

}  // namespace energy
