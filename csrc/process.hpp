// In which process an object was made. A forked child inherits objects whose threads, driver handles and held mutexes
// did not come along: it may neither use nor destroy them.
#pragma once

namespace energy {

// Forks between the first process and this one; counted by an atfork handler, so reading it is one load.
int fork_generation() noexcept;

class Origin {
  public:
    // False in a forked child. Any thread.
    bool here() const noexcept { return fork_generation() == generation_; }

  private:
    int generation_ = fork_generation();
};

}  // namespace energy
