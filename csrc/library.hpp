// A shared library opened by name or path. It stays mapped for the life of the process, because a hung thread may be
// inside it; function pointers taken from it are therefore valid for ever.
#pragma once

#include <string>

namespace energy {

class Library {
  public:
    // Throws LibraryError: what could not be loaded, why, and `remedy`.
    Library(const std::string& path, const std::string& remedy);

    // Whether this process has loaded it, for whomever. Cheap as long as no library was loaded since `loads` was taken,
    // which is updated.
    static bool is_loaded(const std::string& path, unsigned long long& loads) noexcept;

    // The function called `name`, or null when this version of the library has none.
    template <class Function>
    Function* find(const char* name) const noexcept {
        return reinterpret_cast<Function*>(symbol(name));
    }

    const std::string& path() const noexcept { return path_; }

  private:
    void* symbol(const char* name) const noexcept;

    std::string path_;
    void* handle_;
};

}  // namespace energy
