// Backend, lane and fence.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>

#include "bindings/python_objects.h"
#include "device/backend.h"
#include "lane/lane.h"

namespace overlap_recompute {
namespace {

std::shared_ptr<Backend> cuda_backend(int device) {
  const int devices = cuda_device_count();
  if (device < 0 || device >= devices) {
    throw std::invalid_argument("found CUDA device " + std::to_string(device) + "; expected one below " +
                                std::to_string(devices) + ", the number of devices that this build can use");
  }
  return make_cuda_backend(device);
}

EmulatedCopy emulated_copy(std::int64_t bytes, std::int64_t latency_ns, std::int64_t duration_ns, std::uintptr_t source,
                           std::uintptr_t target, int blocks) {
  return {reinterpret_cast<const void*>(source), reinterpret_cast<void*>(target), bytes, latency_ns, duration_ns,
          blocks};
}

void bind_backend(py::module_& module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Backend, std::shared_ptr<Backend>>(module, "Backend", "Streams and events by integer handles.")
      .def_static("cpu", &make_cpu_backend)
      .def_static("cuda", &cuda_backend, py::arg("device"))
      .def(
          "create_stream",
          [](Backend& self, bool high_priority) {
            return self.create_stream(high_priority ? Priority::kHighest : Priority::kLowest);
          },
          py::arg("high_priority") = false)
      .def("destroy_stream", &Backend::destroy_stream, Unlocked(), py::arg("stream"), py::arg("wait") = true)
      .def("create_event", &Backend::create_event, py::arg("timed") = false)
      .def("destroy_event", &Backend::destroy_event, py::arg("event"))
      .def("record", &Backend::record, Unlocked(), py::arg("event"), py::arg("stream"))
      .def("stream_wait", &Backend::stream_wait, Unlocked(), py::arg("stream"), py::arg("event"))
      .def("passed", &Backend::passed, py::arg("event"))
      .def("host_wait", &Backend::host_wait, Unlocked(), py::arg("event"))
      .def("memory_is_stream_ordered", &Backend::memory_is_stream_ordered);
}

void bind_fence(py::module_& module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Fence, std::shared_ptr<Fence>>(module, "Fence", "Owns what the lane still reads; see csrc/lane/lane.h.")
      .def("wait", &Fence::wait, Unlocked(), py::arg("consumer"), py::arg("keep") = false)
      .def("host_wait", &Fence::host_wait, Unlocked())
      .def("passed", &Fence::passed);
  py::class_<LaneCounts>(module, "LaneCounts")
      .def_readonly("windows", &LaneCounts::windows)
      .def_readonly("launched", &LaneCounts::launched)
      .def_readonly("waited", &LaneCounts::waited)
      .def_readonly("abandoned", &LaneCounts::abandoned)
      .def_readonly("open_fences", &LaneCounts::open_fences)
      .def_readonly("guards_held", &LaneCounts::guards_held)
      .def_readonly("events_alive", &LaneCounts::events_alive)
      .def_readonly("events_in_use", &LaneCounts::events_in_use);
}

}  // namespace

void bind_lane(py::module_& module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  bind_backend(module);
  bind_fence(module);
  py::class_<Lane, std::shared_ptr<Lane>>(module, "Lane")
      .def(py::init([](std::shared_ptr<Backend> backend, bool own_stream, bool high_priority,
                       std::shared_ptr<StreamMarks> marks) {
             const Priority priority = high_priority ? Priority::kHighest : Priority::kLowest;
             return make_unlocked<Lane>(std::move(backend), own_stream, priority, std::move(marks));
           }),
           py::arg("backend"), py::arg("own_stream"), py::arg("high_priority"), py::arg("marks").none(true))
      .def_property_readonly("stream", &Lane::stream)
      .def("follow", &Lane::follow, Unlocked(), py::arg("compute"))
      .def("open_window", &Lane::open_window, Unlocked(), py::arg("compute"), py::arg("name"))
      .def("close_window", &Lane::close_window, py::arg("name"))
      .def(
          "launch",
          [](Lane& self, py::object work, py::object guard, std::uint32_t name, std::int64_t value) {
            auto task = call_python(std::move(work));
            auto held = keep_alive(std::move(guard));
            const py::gil_scoped_release unlocked;
            return self.launch(std::move(task), std::move(held), name, value);
          },
          py::arg("work"), py::arg("guard"), py::arg("name"), py::arg("value"))
      .def(
          "launch_copy",
          [](Lane& self, const EmulatedCopy& copy, py::object guard, std::uint32_t name, std::int64_t value) {
            auto held = keep_alive(std::move(guard));
            const py::gil_scoped_release unlocked;
            return self.launch_copy(copy, std::move(held), name, value);
          },
          py::arg("copy"), py::arg("guard"), py::arg("name"), py::arg("value"))
      .def("collect", &Lane::collect, Unlocked())
      .def("close", &Lane::close, Unlocked())
      .def("counts", &Lane::counts);
  py::class_<EmulatedCopy>(module, "EmulatedCopy")
      .def(py::init(&emulated_copy), py::arg("bytes"), py::arg("latency_ns"), py::arg("duration_ns"),
           py::arg("source"), py::arg("target"), py::arg("blocks"));
}

}  // namespace overlap_recompute
