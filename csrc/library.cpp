#include "library.hpp"

#include <dlfcn.h>
#include <link.h>

#include <string_view>

#include "error.hpp"

namespace energy {
namespace {

struct Wanted {
    std::string_view name;
    unsigned long long loads_before;
    unsigned long long loads = 0;
    bool found = false;
};

bool is_named(std::string_view path, std::string_view name) noexcept {
    if (name.find('/') == std::string_view::npos) path = path.substr(path.rfind('/') + 1);
    return path == name;
}

// For one library after the other, until it returns 1.
int look(dl_phdr_info* info, size_t /*size*/, void* data) noexcept {
    Wanted& wanted = *static_cast<Wanted*>(data);
    wanted.loads = info->dlpi_adds;
    if (wanted.loads == wanted.loads_before) return 1;
    wanted.found = info->dlpi_name != nullptr && is_named(info->dlpi_name, wanted.name);
    return wanted.found ? 1 : 0;
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

// The list is looked through rather than dlopen() asked: that would search the disk, and wait for a library that
// another thread is loading at the moment, which may wait for Python's lock.
bool Library::is_loaded(const std::string& path, unsigned long long& loads) noexcept {
    Wanted wanted{path, loads};
    dl_iterate_phdr(look, &wanted);
    loads = wanted.loads;
    return wanted.found;
}

void* Library::symbol(const char* name) const noexcept { return dlsym(handle_, name); }

}  // namespace energy
