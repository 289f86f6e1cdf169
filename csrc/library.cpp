#include "library.hpp"

#include <dlfcn.h>

#include "error.hpp"

namespace energy {

Library::Library(const std::string& path, const std::string& remedy)
    : path_(path), handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) {
    if (handle_ == nullptr) {
        const char* reason = dlerror();
        throw LibraryError("cannot load " + path + ": " + (reason != nullptr ? reason : "unknown reason") + ". " +
                           remedy);
    }
}

void* Library::symbol(const char* name) const noexcept { return dlsym(handle_, name); }

}  // namespace energy
