#include "cuda.hpp"

#include <cstdio>

namespace energy {

Cuda::Cuda(const std::string& path)
    : library_(path,
               "Install the NVIDIA driver, or name the library in the environment variable "
               "ENERGY_CUDA_LIBRARY.") {}

bool Cuda::has_events() const noexcept {
    return get_context && set_context && create_stream && destroy_stream && is_capturing && create_event &&
           destroy_event && record_event && query_event && elapsed_ms;
}

std::vector<std::string> Cuda::device_uuids() const {
    auto* count_devices = library_.find<int(int*)>("cuDeviceGetCount");
    auto* get_device = library_.find<int(int*, int)>("cuDeviceGet");
    auto* get_uuid = find_either<int(Uuid*, int)>("cuDeviceGetUuid_v2", "cuDeviceGetUuid");
    int count = 0;
    if (!count_devices || !get_device || !get_uuid || count_devices(&count) != kSuccess) return {};
    std::vector<std::string> uuids;
    for (int i = 0; i < count; ++i) {
        int device = 0;
        Uuid uuid{};
        if (get_device(&device, i) != kSuccess || get_uuid(&uuid, device) != kSuccess) return {};
        std::string text = "GPU";
        for (int byte = 0; byte < 16; ++byte) {
            char hex[3];
            std::snprintf(hex, sizeof hex, "%02x", uuid.bytes[byte]);
            if (byte == 0 || byte == 4 || byte == 6 || byte == 8 || byte == 10) text += '-';
            text += hex;
        }
        uuids.push_back(text);
    }
    return uuids;
}

std::string Cuda::describe(const char* call, int code) const {
    const char* text = nullptr;
    auto* error_string = library_.find<int(int, const char**)>("cuGetErrorString");
    if (error_string == nullptr || error_string(code, &text) != kSuccess || text == nullptr) text = "CUDA error";
    return std::string(call) + ": " + text + " (" + std::to_string(code) + ")";
}

}  // namespace energy
