// The few calls of libcuda that marks need, opened by name or path, with the values of cuda.h (CUDA 11 and later).
// Nothing here initialises CUDA or creates a context: that is the training's business. Any thread.
#pragma once

#include <string>
#include <vector>

#include "library.hpp"

namespace energy {

class Cuda {
  public:
    using Context = void*;
    using Stream = void*;
    using Event = void*;
    struct Uuid {
        unsigned char bytes[16];
    };
    enum Code : int { kSuccess = 0, kInvalidHandle = 400, kNotReady = 600, kCaptureFirst = 900, kCaptureLast = 908 };

    explicit Cuda(const std::string& path);  // throws LibraryError

    // True when the driver has all that marks with events need.
    bool has_events() const noexcept;
    // "GPU-..." per CUDA ordinal; empty while CUDA is not initialised in this process.
    std::vector<std::string> device_uuids() const;
    // "cuEventRecord: invalid resource handle (400)"
    std::string describe(const char* call, int code) const;

  private:
    Library library_;

  public:
    // Each is null when this driver lacks it.
    int (*const get_context)(Context*) = library_.find<int(Context*)>("cuCtxGetCurrent");
    int (*const set_context)(Context) = library_.find<int(Context)>("cuCtxSetCurrent");
    int (*const create_stream)(Stream*, unsigned) = library_.find<int(Stream*, unsigned)>("cuStreamCreate");
    int (*const destroy_stream)(Stream) = library_.find<int(Stream)>("cuStreamDestroy_v2");
    int (*const is_capturing)(Stream, int*) = library_.find<int(Stream, int*)>("cuStreamIsCapturing");
    int (*const exchange_capture_mode)(int*) = library_.find<int(int*)>("cuThreadExchangeStreamCaptureMode");
    int (*const create_event)(Event*, unsigned) = library_.find<int(Event*, unsigned)>("cuEventCreate");
    int (*const destroy_event)(Event) = library_.find<int(Event)>("cuEventDestroy_v2");
    int (*const record_event)(Event, Stream) = library_.find<int(Event, Stream)>("cuEventRecord");
    int (*const query_event)(Event) = library_.find<int(Event)>("cuEventQuery");
    int (*const elapsed_ms)(float*, Event, Event) = find_either<int(float*, Event, Event)>("cuEventElapsedTime_v2",
                                                                                           "cuEventElapsedTime");

  private:
    template <class Function>
    Function* find_either(const char* newer, const char* older) const {
        auto* found = library_.find<Function>(newer);
        return found != nullptr ? found : library_.find<Function>(older);
    }
};

}  // namespace energy
