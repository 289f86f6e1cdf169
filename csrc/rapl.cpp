#include "rapl.hpp"

#include <fcntl.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <utility>

#include "error.hpp"

namespace energy {
namespace {

class Descriptor {
  public:
    explicit Descriptor(int fd = -1) noexcept : fd_(fd) {}
    ~Descriptor() { reset(-1); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;

    int get() const noexcept { return fd_; }
    void reset(int fd) noexcept {
        if (fd_ >= 0) close(fd_);
        fd_ = fd;
    }

  private:
    int fd_;
};

// Read from its beginning, a file of sysfs is made anew.
class FileCounter final : public RaplCounter {
  public:
    explicit FileCounter(std::string path) : path_(std::move(path)) {}

    uint64_t read() override {
        try {
            return read_open();
        } catch (const CounterError&) {
            file_.reset(-1);
            throw;
        }
    }

  private:
    uint64_t read_open() {
        if (file_.get() < 0) file_.reset(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
        char text[32];
        const ssize_t size = file_.get() < 0 ? -1 : pread(file_.get(), text, sizeof text, 0);
        if (size < 0) throw CounterError(path_, errno);
        uint64_t count = 0;
        const auto [end, error] = std::from_chars(text, text + size, count);
        if (error != std::errc() || (end != text + size && *end != '\n')) throw CounterError(path_, EBADMSG);
        return count;
    }

    const std::string path_;
    Descriptor file_;
};

class PerfCounter final : public RaplCounter {
  public:
    PerfCounter(uint32_t type, uint64_t config, int cpu) : name_("perf_event_open on CPU " + std::to_string(cpu)) {
        constexpr pid_t kEveryProcess = -1;
        constexpr int kNoGroup = -1;
        perf_event_attr wanted{};
        wanted.size = sizeof wanted;
        wanted.type = type;
        wanted.config = config;
        event_.reset(static_cast<int>(
            syscall(SYS_perf_event_open, &wanted, kEveryProcess, cpu, kNoGroup, PERF_FLAG_FD_CLOEXEC)));
        if (event_.get() < 0) throw CounterError(name_, errno);
    }

    uint64_t read() override {
        uint64_t count = 0;
        const ssize_t size = ::read(event_.get(), &count, sizeof count);
        if (size < 0) throw CounterError(name_, errno);
        if (size != sizeof count) throw CounterError(name_, EBADMSG);  // 0: the kernel has dropped the event
        return count;
    }

  private:
    const std::string name_;
    Descriptor event_;
};

std::shared_ptr<RaplCounter> tried(std::shared_ptr<RaplCounter> counter) {
    counter->read();
    return counter;
}

}  // namespace

std::shared_ptr<RaplCounter> RaplCounter::file(const std::string& path) {
    return tried(std::make_shared<FileCounter>(path));
}

std::shared_ptr<RaplCounter> RaplCounter::perf(uint32_t type, uint64_t config, int cpu) {
    return tried(std::make_shared<PerfCounter>(type, config, cpu));
}

}  // namespace energy
