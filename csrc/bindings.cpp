// The only file that knows Python: converts, releases the GIL, calls.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>

#include "error.hpp"
#include "sampler.hpp"

namespace py = pybind11;
using namespace pybind11::literals;

namespace energy {
namespace {

using Released = py::call_guard<py::gil_scoped_release>;

template <class Row>
py::array_t<Row> to_array(const std::vector<Row>& rows) {
    return py::array_t<Row>(static_cast<py::ssize_t>(rows.size()), rows.data());
}

std::optional<Cuda::Stream> to_stream(std::optional<uintptr_t> handle) {
    if (!handle) return std::nullopt;
    return reinterpret_cast<Cuda::Stream>(*handle);
}

std::chrono::nanoseconds to_duration(double seconds) {
    constexpr double kLongestS = 1e9;
    const double bounded = std::isnan(seconds) ? 0.0 : std::min(std::max(seconds, 0.0), kLongestS);
    return std::chrono::nanoseconds(std::llround(bounded * 1e9));
}

// Errors become the classes of energy_plugins.errors, which is plain Python and imports nothing.
void register_errors(py::module_& module) {
    module.attr("NvmlError") = py::module_::import("energy_plugins.errors").attr("NvmlError");
    py::register_exception_translator([](std::exception_ptr caught) {
        try {
            std::rethrow_exception(caught);
        } catch (const NvmlError& error) {
            const py::object type = py::module_::import("energy_plugins.errors").attr("NvmlError");
            py::set_error(type, type(error.what(), "call"_a = error.call(), "code"_a = error.code()));
        } catch (const LibraryError& error) {
            py::set_error(py::module_::import("energy_plugins.errors").attr("LibraryError"), error.what());
        } catch (const CounterError& error) {
            py::set_error(PyExc_OSError, py::make_tuple(error.error(), error.what()));  // Python picks the subclass
        }
    });
}

template <class T>
py::class_<T, std::shared_ptr<T>> shared_class(py::module_& module, const char* name, const char* doc) {
    // An ordinary Python type: nothing here needs the static properties that pybind11's own metaclass is for.
    return {module, name, py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)), doc};
}

template <class T>
py::class_<T> value_class(py::module_& module, const char* name, const char* doc) {
    return {module, name, py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)), doc};
}

std::vector<Target> to_targets(const std::vector<std::string>& uuids,
                               const std::optional<std::vector<PowerSource>>& sources,
                               const std::optional<std::vector<PowerSource>>& means) {
    if (sources && sources->size() != uuids.size()) throw std::invalid_argument("as many sources as uuids are needed");
    if (means && means->size() != uuids.size()) throw std::invalid_argument("as many means as uuids are needed");
    std::vector<Target> targets;
    for (size_t i = 0; i < uuids.size(); ++i) {
        targets.push_back(
            {uuids[i], sources ? (*sources)[i] : PowerSource::kSampleBuffer, means ? (*means)[i] : PowerSource::kNone});
    }
    return targets;
}

void bind_drivers(py::module_& module) {
    shared_class<Clock>(module, "Clock", "The clock that stamps everything.")
        .def(py::init(&Clock::monotonic))
        .def_static("monotonic", &Clock::monotonic, "The machine's own: CLOCK_MONOTONIC and CLOCK_REALTIME.")
        .def_static("simulated", &Clock::simulated, "nvml_path"_a,
                    "A simulator's, real or virtual. LibraryError if the library at this path is not a simulated one.")
        .def("now_ns", &Clock::now_ns, "Monotonic time in nanoseconds.")
        .def("wall_ns", &Clock::wall_ns, "Nanoseconds since 1970.");

    value_class<Capabilities>(module, "Capabilities", "What the driver can read of one device.")
        .def(py::init<>())
        .def_readonly("energy_counter", &Capabilities::energy_counter)
        .def_readonly("power_samples", &Capabilities::power_samples)
        .def_readonly("power_instant", &Capabilities::power_instant)
        .def_readonly("power_average", &Capabilities::power_average)
        .def_readonly("power_usage", &Capabilities::power_usage)
        .def_readonly("activity", &Capabilities::activity, "Whether it has GPM.")
        .def_readonly("reasons", &Capabilities::reasons, "What is missing, by name, and why.");

    shared_class<Nvml>(module, "Nvml", "An NVML library, initialised for as long as this object lives.")
        .def(py::init<const std::string&>(), "path"_a = "libnvidia-ml.so.1", Released(),
             "LibraryError if it cannot be loaded, NvmlError if it cannot be initialised.")
        .def_property_readonly("simulated", &Nvml::simulated, "Whether this is the simulator's.")
        .def_property_readonly("path", &Nvml::path)
        .def("probe", &Nvml::probe, "uuid"_a, Released(),
             "What can be read of a device. NvmlError if it is unknown or lost; 'not supported' is an answer.")
        .def(
            "default_limit_w",
            [](const Nvml& nvml, const std::string& uuid) { return nvml.default_limit_w(nvml.device(uuid)); }, "uuid"_a,
            Released(), "The power limit that the device has when nobody sets one. NvmlError if it does not say.");

    shared_class<Cuda>(module, "Cuda", "A CUDA driver library; loaded, never initialised.")
        .def(py::init<const std::string&>(), "path"_a = "libcuda.so.1", Released(),
             "LibraryError if it cannot be loaded.")
        .def("device_uuids", &Cuda::device_uuids, Released(),
             "UUIDs ('GPU-...') by CUDA ordinal; empty while CUDA is not initialised in this process.");
}

void bind_marks(py::module_& module) {
    PYBIND11_NUMPY_DTYPE(Mark, host_ns, gpu_ns, code, begin, samples, tokens);

    value_class<MarkStats>(module, "MarkStats", "What marking did, and what it cost.")
        .def(py::init<>())
        .def_readonly("marks", &MarkStats::marks)
        .def_readonly("events", &MarkStats::events)
        .def_readonly("dropped", &MarkStats::dropped, "Marks lost because nobody resolved or drained.")
        .def_readonly("event_misses", &MarkStats::event_misses,
                      "Marks that asked for an event and got none: no or another context, a capture, an empty pool, "
                      "an error.")
        .def_readonly("mark_ns", &MarkStats::mark_ns, "Time spent marking, estimated from every 64th mark.")
        .def_readonly("resolve_errors", &MarkStats::last_error, "Last error of CUDA; empty when there was none.");

    // mark() keeps the GIL: giving it up costs more than the mark, and it makes the callers one at a time.
    shared_class<MarkLog>(module, "MarkLog", "What the training thread was doing, in host time and in GPU time.")
        .def(py::init([](std::shared_ptr<Clock> clock, std::shared_ptr<Cuda> cuda, size_t capacity, size_t events) {
                 return std::make_shared<MarkLog>(clock, cuda, capacity, events);
             }),
             py::arg("clock").none(false), "cuda"_a = py::none(), py::kw_only(), "capacity"_a = MarkLog::kMarks,
             "events"_a = MarkLog::kEvents)
        .def_static(
            "once_loaded",
            [](std::shared_ptr<Clock> clock, const std::string& cuda) {
                return std::make_shared<MarkLog>(clock, cuda, MarkLog::kMarks, MarkLog::kEvents);
            },
            py::arg("clock").none(false), "cuda"_a,
            "One that opens CUDA's library, by its name, when a mark with a stream finds that this process has loaded "
            "it.")
        .def(
            "mark",
            [](MarkLog& log, uint16_t code, bool begin, std::optional<uintptr_t> stream, int64_t samples,
               int64_t tokens) { log.mark(code, begin, to_stream(stream), samples, tokens); },
            "code"_a, "begin"_a, "stream"_a = py::none(), "samples"_a = -1, "tokens"_a = -1,
            "Marks this instant; with a stream, also when the device comes to it. Waits for nothing, raises nothing.")
        .def(
            "begin",
            [](MarkLog& log, uint16_t code, const py::function& stream) {
                std::optional<uintptr_t> handle;
                if (log.wants_event(code)) handle = py::cast<uintptr_t>(stream());
                log.mark(code, true, to_stream(handle), -1, -1);
            },
            "code"_a, "stream"_a,
            "Marks the beginning of a span. If one of its kind ended, with an event, less than 1 ms ago, the device "
            "comes to both at once and that is all; else it is marked on the stream that stream() gives, too.")
        .def("mark_at", &MarkLog::mark_at, "code"_a, "begin"_a, "host_ns"_a, "samples"_a = -1, "tokens"_a = -1,
             "Marks an instant that the caller has read from the clock.")
        .def("resolve", &MarkLog::resolve, Released(),
             "Times the events that have completed; returns how many marks are unresolved. A sampler calls it.")
        .def(
            "drain", [](MarkLog& log) { return to_array(log.drain()); },
            "Resolved marks in order, up to the first unresolved one: host_ns i8, gpu_ns i8 (-1: no event), code u2, "
            "begin u1, samples i8, tokens i8.")
        .def_property_readonly("stats", &MarkLog::stats);
}

void bind_sampler(py::module_& module) {
    PYBIND11_NUMPY_DTYPE(PowerSample, t_ns, power_w);
    PYBIND11_NUMPY_DTYPE(CounterReading, before_ns, after_ns, energy_j, edge);
    PYBIND11_NUMPY_DTYPE(StateReading, t_ns, sm_clock_mhz, temperature_c, enforced_limit_w, requested_limit_w,
                         utilisation, clock_reasons);
    PYBIND11_NUMPY_DTYPE(ActivityReading, start_ns, end_ns, sm, occupancy, tensor, dram, nvlink_rx_bytes_per_s,
                         nvlink_tx_bytes_per_s);
    PYBIND11_NUMPY_DTYPE(CpuReading, before_ns, after_ns, count);

    shared_class<RaplCounter>(module, "RaplCounter", "An energy counter of the CPU, open.")
        .def(py::init(&RaplCounter::file), "path"_a, "One that sysfs shows as text. OSError if it cannot be read.")
        .def_static("perf", &RaplCounter::perf, "kind"_a, "config"_a, "cpu"_a,
                    "A perf event of all processes on one CPU; it counts from now on. OSError if it is refused.")
        .def("read", &RaplCounter::read, "The count, in the counter's own unit; OSError. Not beside a sampler.");

    value_class<SamplerStats>(module, "SamplerStats", "What sampling did, and what it cost.")
        .def(py::init<>())
        .def_readonly("thread_cpu_s", &SamplerStats::thread_cpu_s, "CPU time of the thread, or of the calls of tick().")
        .def_readonly("driver_call_s", &SamplerStats::driver_call_s, "Time inside NVML, by the sampler's clock.")
        .def_readonly("drains", &SamplerStats::drains)
        .def_readonly("counter_reads", &SamplerStats::counter_reads)
        .def_readonly("dropped", &SamplerStats::dropped, "Rows lost because power(), counter() or cpu() came too late.")
        .def_readonly("late_ticks", &SamplerStats::late_ticks, "Drains that began more than half a period late.")
        .def_readonly("lost_samples", &SamplerStats::lost_samples,
                      "Samples which the driver overwrote between two drains, estimated from the gap.");

    py::native_enum<PowerSource>(module, "PowerSource", "enum.Enum", "Where a device's power samples come from.")
        .value("NONE", PowerSource::kNone)
        .value("SAMPLE_BUFFER", PowerSource::kSampleBuffer)
        .value("INSTANT", PowerSource::kInstant)
        .value("AVERAGE", PowerSource::kAverage)
        .value("USAGE", PowerSource::kUsage)
        .finalize();

    shared_class<Sampler>(module, "Sampler",
                          "Reads power samples and energy counters in the background, and has the marks resolved. "
                          "Without devices it needs no NVML.")
        .def(
            py::init([](std::shared_ptr<Nvml> nvml, const std::vector<std::string>& uuids, std::shared_ptr<Clock> clock,
                        std::shared_ptr<MarkLog> marks, const std::optional<std::vector<PowerSource>>& sources,
                        const std::optional<std::vector<PowerSource>>& means, int64_t drain_period_ns,
                        int64_t counter_period_ns, size_t ring_capacity, bool activity, CpuCounters cpu) {
                return std::make_shared<Sampler>(
                    nvml, to_targets(uuids, sources, means), clock, marks,
                    SamplerOptions{drain_period_ns, counter_period_ns, ring_capacity, activity}, std::move(cpu));
            }),
            "nvml"_a, "uuids"_a, py::arg("clock").none(false), py::kw_only(), "marks"_a = py::none(),
            "sources"_a = py::none(), "means"_a = py::none(), "drain_period_ns"_a = SamplerOptions().drain_period_ns,
            "counter_period_ns"_a = SamplerOptions().counter_period_ns,
            "ring_capacity"_a = SamplerOptions().ring_capacity, "activity"_a = SamplerOptions().activity,
            "cpu"_a = CpuCounters())
        .def(
            "start", &Sampler::start, "threaded"_a = true, Released(),
            "Opens the devices and asks for a counter edge; restartable. NvmlError if a device is unknown; one that is "
            "lost at this moment is retried in the background, and is in take_errors().")
        .def("stop", &Sampler::stop, Released(),
             "Ends the thread; idempotent. One that hangs in the driver is left behind after 1 s.")
        .def("tick", &Sampler::tick, "now_ns"_a, Released(),
             "Does what is due and returns the next deadline. RuntimeError while the sampler has a thread.")
        .def("find_edge", &Sampler::find_edge, Released(),
             "Asks for the instant at which each device's counter refreshes: about eight reads in 0.4 s, at most 40. "
             "Joins a search under way. Found, it is a row with edge = 1; the first read is a plain row.")
        .def("edge_pending", &Sampler::edge_pending, Released(), "Whether such a search is asked for or under way.")
        .def("read_counter", &Sampler::read_counter, Released(),
             "Asks for two counter readings per device: now, and half a period after its next refresh; where the phase "
             "of "
             "the refresh is unknown, for three: now, and 55 and 110 ms later.")
        .def("reads_pending", &Sampler::reads_pending, Released(),
             "Whether such readings, or a search, are asked for or under way.")
        .def("drain_now", &Sampler::drain_now, Released(),
             "Asks for a power drain and a resolution of marks as soon as possible.")
        .def("drain_every", &Sampler::drain_every, "period_ns"_a, Released(),
             "Drains now, and from now on in this period.")
        .def(
            "wait_drained",
            [](Sampler& sampler, double timeout_s) { return sampler.wait_drained(to_duration(timeout_s)); },
            "timeout_s"_a, Released(),
            "Waits for a drain not yet waited for and, after drain_now(), begun since; returns the drains so far. "
            "Returns early at stop(), and at once when the sampler has no thread.")
        .def(
            "power", [](Sampler& sampler, size_t i) { return to_array(sampler.power(i)); }, "i"_a,
            "New power samples of device i: t_ns i8 (strictly increasing), power_w f8.")
        .def(
            "mean", [](Sampler& sampler, size_t i) { return to_array(sampler.mean(i)); }, "i"_a,
            "The same of the second reading of device i, of a sampler made with means: none where that is NONE.")
        .def(
            "counter", [](Sampler& sampler, size_t i) { return to_array(sampler.counter(i)); }, "i"_a,
            "New counter readings of device i: before_ns i8, after_ns i8, energy_j f8, edge u1. The counter stood at "
            "energy_j at some instant of the bracket; with edge = 1 it came to that value there.")
        .def(
            "cpu", [](Sampler& sampler, size_t i) { return to_array(sampler.cpu(i)); }, "i"_a,
            "New readings of CPU counter i: before_ns i8, after_ns i8, count u8. It stood at count at some instant of "
            "the bracket.")
        .def(
            "state", [](Sampler& sampler, size_t i) { return to_array(sampler.state(i)); }, "i"_a,
            "New readings of what device i was doing, one a second: t_ns i8; sm_clock_mhz, temperature_c, "
            "enforced_limit_w, requested_limit_w, utilisation (share of time) f8, NaN where the driver does not say; "
            "clock_reasons i8, NVML's bits, -1 where it does not say. Without activity=True a field that is dear to "
            "read is read less often, and keeps its value for up to 30 s.")
        .def(
            "activity", [](Sampler& sampler, size_t i) { return to_array(sampler.activity(i)); }, "i"_a,
            "New readings of how busy device i was, one a second, of a sampler made with activity=True: start_ns i8, "
            "end_ns i8; sm, occupancy, tensor, dram (shares), nvlink_rx_bytes_per_s, nvlink_tx_bytes_per_s f8, NaN "
            "where the driver does not say.")
        .def("stats", &Sampler::stats)
        .def("take_errors", &Sampler::take_errors,
             "Device index (-1: none) and message of what went wrong; each error once.");
}

}  // namespace
}  // namespace energy

PYBIND11_MODULE(_native, module) {
    module.doc() = "What must not disturb the training: the sampler's thread, marks and events.";
    energy::register_errors(module);
    energy::bind_drivers(module);
    energy::bind_marks(module);
    energy::bind_sampler(module);
}
