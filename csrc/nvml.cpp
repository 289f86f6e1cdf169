#include "nvml.hpp"

#include "error.hpp"
#include "gpm.hpp"
#include "library.hpp"

namespace energy {
namespace {

constexpr const char* kRemedy =
    "Install the NVIDIA driver, or name the library in the environment variable ENERGY_NVML_LIBRARY.";

constexpr const char* kMissingSymbol = "symbol missing in this driver";

double milliwatts(int type, const abi::Value& value) {
    switch (type) {
        case abi::kDouble:
            return value.as_double;
        case abi::kUnsignedLong:
            return static_cast<double>(value.as_ulong);
        case abi::kUnsignedLongLong:
            return static_cast<double>(value.as_ullong);
        case abi::kSignedLongLong:
            return static_cast<double>(value.as_llong);
        case abi::kSignedInt:
            return value.as_int;
        case abi::kUnsignedShort:
            return value.as_ushort;
        default:  // an H200 says unsigned int
            return value.as_uint;
    }
}

}  // namespace

bool unavailable(int code) noexcept {
    return code == abi::kNotSupported || code == abi::kFunctionNotFound || code == abi::kNoPermission;
}

struct Nvml::Symbols {
    explicit Symbols(const std::string& path) : library(path, kRemedy) {}

    Library library;
    abi::Init* init = library.find<abi::Init>("nvmlInit_v2");
    abi::Shutdown* shutdown = library.find<abi::Shutdown>("nvmlShutdown");
    abi::ErrorString* error_string = library.find<abi::ErrorString>("nvmlErrorString");
    abi::HandleByUuid* handle_by_uuid = library.find<abi::HandleByUuid>("nvmlDeviceGetHandleByUUID");
    abi::TotalEnergy* total_energy = library.find<abi::TotalEnergy>("nvmlDeviceGetTotalEnergyConsumption");
    abi::PowerUsage* power_usage = library.find<abi::PowerUsage>("nvmlDeviceGetPowerUsage");
    abi::FieldValues* field_values = library.find<abi::FieldValues>("nvmlDeviceGetFieldValues");
    abi::GetSamples* get_samples = library.find<abi::GetSamples>("nvmlDeviceGetSamples");
    abi::ClockInfo* clock_info = library.find<abi::ClockInfo>("nvmlDeviceGetClockInfo");
    abi::Temperature* temperature = library.find<abi::Temperature>("nvmlDeviceGetTemperature");
    abi::PowerLimit* enforced_limit = library.find<abi::PowerLimit>("nvmlDeviceGetEnforcedPowerLimit");
    abi::PowerLimit* requested_limit = library.find<abi::PowerLimit>("nvmlDeviceGetPowerManagementLimit");
    abi::PowerLimit* default_limit = library.find<abi::PowerLimit>("nvmlDeviceGetPowerManagementDefaultLimit");
    abi::UtilizationRates* utilization = library.find<abi::UtilizationRates>("nvmlDeviceGetUtilizationRates");
    abi::ClockReasons* event_reasons = library.find<abi::ClockReasons>("nvmlDeviceGetCurrentClocksEventReasons");
    // Its name before driver 535.
    abi::ClockReasons* throttle_reasons = library.find<abi::ClockReasons>("nvmlDeviceGetCurrentClocksThrottleReasons");
    bool simulated = library.find<const char*()>("ep_sim_version") != nullptr;
};

Nvml::Nvml(const std::string& path) : symbols_(std::make_unique<const Symbols>(path)) {
    call("nvmlInit_v2", symbols_->init);
}

Nvml::~Nvml() {
    // In a forked child the driver's state belongs to the parent.
    if (origin_.here() && symbols_->shutdown != nullptr) symbols_->shutdown();
}

const std::string& Nvml::path() const noexcept { return symbols_->library.path(); }

const Library& Nvml::library() const noexcept { return symbols_->library; }

bool Nvml::simulated() const noexcept { return symbols_->simulated; }

Capabilities Nvml::probe(const std::string& uuid) const {
    Capabilities found;
    const auto attempt = [&found](const char* name, const auto& read) {
        try {
            read();
            return true;
        } catch (const NvmlError& error) {
            if (!unavailable(error.code())) throw;
            found.reasons[name] = error.what();
            return false;
        }
    };
    if (!origin_.here()) {
        for (const char* name :
             {"energy_counter", "power_samples", "power_instant", "power_average", "power_usage", "activity"}) {
            found.reasons[name] = "NVML was opened before this process was forked";
        }
        return found;
    }
    const abi::Device handle = device(uuid);
    std::vector<StampedPower> samples;
    found.energy_counter = attempt("energy_counter", [&] { energy_j(handle); });
    found.power_samples = attempt("power_samples", [&] { power_samples(handle, 0, samples); });
    found.power_instant = attempt("power_instant", [&] { power_w(handle, PowerReading::kInstant); });
    found.power_average = attempt("power_average", [&] { power_w(handle, PowerReading::kAverage); });
    found.power_usage = attempt("power_usage", [&] { power_w(handle, PowerReading::kUsage); });
    found.activity = attempt("activity", [&] { Gpm(*this).require(handle); });
    attempt("sm_clock_mhz", [&] { sm_clock_mhz(handle); });
    attempt("temperature_c", [&] { temperature_c(handle); });
    attempt("enforced_limit_w", [&] { enforced_limit_w(handle); });
    attempt("requested_limit_w", [&] { requested_limit_w(handle); });
    attempt("utilisation", [&] { utilisation(handle); });
    attempt("clock_reasons", [&] { clock_reasons(handle); });
    return found;
}

void Nvml::reopen() const { call("nvmlInit_v2", symbols_->init); }

abi::Device Nvml::device(const std::string& uuid) const {
    abi::Device device = nullptr;
    call("nvmlDeviceGetHandleByUUID", symbols_->handle_by_uuid, uuid.c_str(), &device);
    return device;
}

double Nvml::energy_j(abi::Device device) const {
    unsigned long long millijoules = 0;
    call("nvmlDeviceGetTotalEnergyConsumption", symbols_->total_energy, device, &millijoules);
    return static_cast<double>(millijoules) * 1e-3;
}

double Nvml::power_w(abi::Device device, PowerReading reading) const {
    if (reading == PowerReading::kUsage) {
        unsigned int value = 0;
        call("nvmlDeviceGetPowerUsage", symbols_->power_usage, device, &value);
        return value * 1e-3;
    }
    const bool instant = reading == PowerReading::kInstant;
    abi::FieldValue field{};
    field.field_id = instant ? abi::kPowerInstant : abi::kPowerAverage;
    call("nvmlDeviceGetFieldValues", symbols_->field_values, device, 1, &field);
    // A driver that does not know the field calls it an invalid argument.
    if (field.code == abi::kInvalidArgument) field.code = abi::kNotSupported;
    if (field.code != abi::kSuccess) {
        fail(instant ? "NVML_FI_DEV_POWER_INSTANT" : "NVML_FI_DEV_POWER_AVERAGE", field.code);
    }
    return milliwatts(static_cast<int>(field.value_type), field.value) * 1e-3;
}

double Nvml::sm_clock_mhz(abi::Device device) const {
    unsigned int megahertz = 0;
    call("nvmlDeviceGetClockInfo", symbols_->clock_info, device, abi::kClockSm, &megahertz);
    return megahertz;
}

double Nvml::temperature_c(abi::Device device) const {
    unsigned int celsius = 0;
    call("nvmlDeviceGetTemperature", symbols_->temperature, device, abi::kTemperatureOfGpu, &celsius);
    return celsius;
}

double Nvml::enforced_limit_w(abi::Device device) const {
    return limit_w("nvmlDeviceGetEnforcedPowerLimit", symbols_->enforced_limit, device);
}

double Nvml::requested_limit_w(abi::Device device) const {
    return limit_w("nvmlDeviceGetPowerManagementLimit", symbols_->requested_limit, device);
}

double Nvml::default_limit_w(abi::Device device) const {
    return limit_w("nvmlDeviceGetPowerManagementDefaultLimit", symbols_->default_limit, device);
}

double Nvml::utilisation(abi::Device device) const {
    abi::Utilization percent{};
    call("nvmlDeviceGetUtilizationRates", symbols_->utilization, device, &percent);
    return percent.gpu * 1e-2;
}

int64_t Nvml::clock_reasons(abi::Device device) const {
    unsigned long long reasons = 0;
    auto* event = symbols_->event_reasons;
    const int code = event != nullptr ? event(device, &reasons) : abi::kFunctionNotFound;
    if (code == abi::kFunctionNotFound) {
        call("nvmlDeviceGetCurrentClocksThrottleReasons", symbols_->throttle_reasons, device, &reasons);
    } else {
        check("nvmlDeviceGetCurrentClocksEventReasons", code);
    }
    return static_cast<int64_t>(reasons);
}

void Nvml::power_samples(abi::Device device, int64_t last_seen_us, std::vector<StampedPower>& samples) const {
    constexpr const char* kCall = "nvmlDeviceGetSamples";
    constexpr size_t kMost = 1 << 16;
    if (symbols_->get_samples == nullptr) throw NvmlError(kCall, abi::kFunctionNotFound, kMissingSymbol);
    std::vector<abi::Sample> buffer(512);  // an H200 keeps 120
    while (true) {
        auto count = static_cast<unsigned int>(buffer.size());
        int type = abi::kUnsignedInt;
        const int code = symbols_->get_samples(
            device, abi::kTotalPowerSamples, static_cast<unsigned long long>(last_seen_us), &type, &count, &buffer[0]);
        if (code == abi::kNotFound) return;  // nothing newer
        if (code == abi::kInsufficientSize && buffer.size() < kMost) {
            buffer.resize(buffer.size() * 4);
            continue;
        }
        if (code != abi::kSuccess) fail(kCall, code);
        for (unsigned int i = 0; i < count && i < buffer.size(); ++i) {
            samples.push_back({static_cast<int64_t>(buffer[i].time_stamp), milliwatts(type, buffer[i].value) * 1e-3});
        }
        return;
    }
}

double Nvml::limit_w(const char* name, abi::PowerLimit* function, abi::Device device) const {
    unsigned int milliwatts = 0;
    call(name, function, device, &milliwatts);
    return milliwatts * 1e-3;
}

template <class Function, class... Arguments>
void Nvml::call(const char* name, Function* function, Arguments... arguments) const {
    if (function == nullptr) throw NvmlError(name, abi::kFunctionNotFound, kMissingSymbol);
    check(name, function(arguments...));
}

void Nvml::check(const char* call, int code) const {
    if (code != abi::kSuccess) fail(call, code);
}

void Nvml::fail(const char* call, int code) const {
    const char* text = symbols_->error_string != nullptr ? symbols_->error_string(code) : nullptr;
    throw NvmlError(call, code, text != nullptr ? text : "driver error");
}

}  // namespace energy
