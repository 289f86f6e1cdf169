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

constexpr unsigned kPowerAverage = 185;  // NVML_FI_DEV_POWER_AVERAGE
constexpr unsigned kPowerInstant = 186;  // NVML_FI_DEV_POWER_INSTANT
constexpr int kTotalPowerSamples = 0;    // nvmlSamplingType_t: NVML_TOTAL_POWER_SAMPLES

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

struct FieldValue {  // nvmlFieldValue_t
    unsigned int field_id;
    unsigned int scope_id;
    long long timestamp;
    long long latency_us;
    unsigned int value_type;
    int code;
    Value value;
};

constexpr int kClockSm = 1;           // nvmlClockType_t: NVML_CLOCK_SM
constexpr int kTemperatureOfGpu = 0;  // nvmlTemperatureSensors_t: NVML_TEMPERATURE_GPU

struct Utilization {  // nvmlUtilization_t, per cent of time
    unsigned int gpu;
    unsigned int memory;
};

using GpmSample = void*;  // nvmlGpmSample_t

enum GpmMetricId : unsigned int {  // nvmlGpmMetricId_t: per cent, but for the links' MiB/s
    kGpmSmUtil = 2,
    kGpmSmOccupancy = 3,
    kGpmAnyTensorUtil = 5,
    kGpmDramBandwidthUtil = 10,
    kGpmNvlinkTotalRx = 60,
    kGpmNvlinkTotalTx = 61,
};

struct GpmMetric {  // nvmlGpmMetric_t
    unsigned int id;
    int code;
    double value;
    const char* names[3];
};

struct GpmMetrics {  // nvmlGpmMetricsGet_t, version 1; headers differ in the array's length, 98 at first
    unsigned int version;
    unsigned int count;
    GpmSample older;
    GpmSample newer;
    GpmMetric metrics[98];
};

struct GpmSupport {  // nvmlGpmSupport_t, version 1
    unsigned int version;
    unsigned int supported;
};

extern "C" {
using Init = int();
using Shutdown = int();
using ErrorString = const char*(int code);
using HandleByUuid = int(const char* uuid, Device* device);
using TotalEnergy = int(Device device, unsigned long long* millijoules);
using PowerUsage = int(Device device, unsigned int* milliwatts);
using FieldValues = int(Device device, int count, FieldValue* values);
using GetSamples = int(Device device, int kind, unsigned long long last_seen, int* value_type, unsigned int* count,
                       Sample* samples);
using ClockInfo = int(Device device, int type, unsigned int* megahertz);
using Temperature = int(Device device, int sensor, unsigned int* celsius);
using PowerLimit = int(Device device, unsigned int* milliwatts);
using ClockReasons = int(Device device, unsigned long long* reasons);
using UtilizationRates = int(Device device, Utilization* utilization);
using GpmQuerySupport = int(Device device, GpmSupport* support);
using GpmSampleAlloc = int(GpmSample* sample);
using GpmSampleFree = int(GpmSample sample);
using GpmSampleGet = int(Device device, GpmSample sample);
using GpmMetricsGet = int(GpmMetrics* metrics);
}

}  // namespace energy::abi
