// Event ring and stream marks.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
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

// NOTE [ a mark from Python ]
// pybind11 takes longer to find its way into a function than a mark takes; the interpreter's own calling convention does
// not. The price is that arguments go by position, and are checked here.
PyObject* mark(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 && count != 3) {
    PyErr_Format(PyExc_TypeError, "mark(name, kind, value=0) got %zd arguments", count);
    return nullptr;
  }
  const long long name = PyLong_AsLongLong(arguments[0]);
  const long long kind = PyLong_AsLongLong(arguments[1]);
  const long long value = count == 3 ? PyLong_AsLongLong(arguments[2]) : 0;
  constexpr long long most = std::numeric_limits<std::uint32_t>::max();
  if ((name == -1 || kind == -1 || value == -1) && PyErr_Occurred()) return nullptr;
  if (name < 0 || name > most || kind < 0 || kind > most) {
    PyErr_SetString(PyExc_OverflowError, "mark(name, kind, value=0) takes a name of `intern` and a MarkKind");
    return nullptr;
  }
  auto* ring = reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder().value_ptr<EventRing>();
  if (ring == nullptr) {
    PyErr_SetString(PyExc_TypeError, "an EventRing that was not initialized");
    return nullptr;
  }
  try {
    ring->mark(static_cast<std::uint32_t>(name), static_cast<std::uint32_t>(kind), value);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  Py_RETURN_NONE;
}

PyMethodDef mark_method = {"mark", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(mark)), METH_FASTCALL,
                           "mark(name, kind, value=0)"};

}  // namespace

void bind_trace(py::module_& module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  PYBIND11_NUMPY_DTYPE(Mark, time_ns, value, stream, name, thread, kind);
  py::class_<EventRing, std::shared_ptr<EventRing>> ring(module, "EventRing");
  ring
      .def(py::init<std::size_t>(), py::arg("capacity"))
      .def("intern", &EventRing::intern, py::arg("name"))
      .def("drain", &drain<EventRing>)
      .def_property_readonly("names", &EventRing::names)
      .def_property_readonly("threads", &EventRing::threads)
      .def_property_readonly("capacity", &EventRing::capacity)
      .def_property_readonly("overwritten", &EventRing::overwritten);
  PyObject* method = PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(ring.ptr()), &mark_method);
  if (method == nullptr) throw py::error_already_set();
  ring.attr("mark") = py::reinterpret_steal<py::object>(method);
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
