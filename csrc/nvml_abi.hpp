// The part of NVML's C interface that is used here, with the values of nvml.h (NVML 11 and later).
#pragma once

namespace energy::abi {

using Device = void*;  // nvmlDevice_t

enum Code : int {  // nvmlReturn_t
    kSuccess = 0,
    kUninitialized = 1,
    kInvalidArgument = 2,
    kNotSupported = 3,
    kNoPermission = 4,
    kNotFound = 6,
    kInsufficientSize = 7,
    kFunctionNotFound = 13,
    kGpuIsLost = 15,
    kUnknown = 999,
};

enum ValueType : int {  // nvmlValueType_t
    kDouble = 0,
    kUnsignedInt = 1,
    kUnsignedLong = 2,
    kUnsignedLongLong = 3,
    kSignedLongLong = 4,
    kSignedInt = 5,
    kUnsignedShort = 6,
};

constexpr int kTotalPowerSamples = 0;  // nvmlSamplingType_t: NVML_TOTAL_POWER_SAMPLES

union Value {  // nvmlValue_t
    double as_double;
    unsigned int as_uint;
    unsigned long as_ulong;
    unsigned long long as_ullong;
    long long as_llong;
    int as_int;
    unsigned short as_ushort;
};

struct Sample {                     // nvmlSample_t
    unsigned long long time_stamp;  // wall clock, microseconds
    Value value;
};

extern "C" {
using Init = int();
using Shutdown = int();
using ErrorString = const char*(int code);
using HandleByUuid = int(const char* uuid, Device* device);
using TotalEnergy = int(Device device, unsigned long long* millijoules);
using PowerUsage = int(Device device, unsigned int* milliwatts);
using GetSamples = int(Device device, int kind, unsigned long long last_seen, int* value_type, unsigned int* count,
                       Sample* samples);
}

}  // namespace energy::abi
