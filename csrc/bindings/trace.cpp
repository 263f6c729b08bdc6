// Event ring and stream marks.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "bindings/python_objects.h"
#include "trace/event_ring.h"
#include "trace/stream_marks.h"

namespace overlap_recompute {
namespace {

py::array_t<Mark> as_array(const std::vector<Mark>& marks) {
  py::array_t<Mark> array(static_cast<py::ssize_t>(marks.size()));
  std::copy(marks.begin(), marks.end(), array.mutable_data());
  return array;
}

template <class Source>
py::array_t<Mark> drain(Source& source) {
  std::vector<Mark> marks;
  {
    const py::gil_scoped_release unlocked;
    marks = source.drain();
  }
  return as_array(marks);
}

}  // namespace

void bind_trace(py::module_& module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  PYBIND11_NUMPY_DTYPE(Mark, time_ns, value, stream, name, thread, kind);
  py::class_<EventRing, std::shared_ptr<EventRing>>(module, "EventRing")
      .def(py::init<std::size_t>(), py::arg("capacity"))
      .def("intern", &EventRing::intern, py::arg("name"))
      .def("mark", &EventRing::mark, py::arg("name"), py::arg("kind"), py::arg("value") = 0)
      .def("drain", &drain<EventRing>)
      .def_property_readonly("names", &EventRing::names)
      .def_property_readonly("threads", &EventRing::threads)
      .def_property_readonly("capacity", &EventRing::capacity)
      .def_property_readonly("overwritten", &EventRing::overwritten);
  py::class_<StreamMarks, std::shared_ptr<StreamMarks>>(module, "StreamMarks")
      .def(py::init([](std::shared_ptr<EventRing> ring, std::shared_ptr<Backend> backend, StreamHandle stream,
                       std::size_t capacity) {
             return make_unlocked<StreamMarks>(std::move(ring), std::move(backend), stream, capacity);
           }),
           Unlocked(), py::arg("ring"), py::arg("backend"), py::arg("stream"), py::arg("capacity"))
      .def("mark", &StreamMarks::mark, Unlocked(), py::arg("stream"), py::arg("name"), py::arg("kind"),
           py::arg("value") = 0)
      .def("drain", &drain<StreamMarks>)
      .def_property_readonly("pending", &StreamMarks::pending)
      .def_property_readonly("dropped", &StreamMarks::dropped)
      .def_property_readonly("events_alive", &StreamMarks::events_alive);
}

}  // namespace overlap_recompute
