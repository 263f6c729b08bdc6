// Comparisons that the runtime makes before every unit; see NOTE [ a mark from Python ] in trace.cpp.
#include <pybind11/pybind11.h>

#include <cstring>

namespace py = pybind11;

namespace overlap_recompute {
namespace {

bool takes(const char* signature, Py_ssize_t wanted, Py_ssize_t count) {
  if (count == wanted) return true;
  PyErr_Format(PyExc_TypeError, "%s got %zd arguments", signature, count);
  return false;
}

PyObject* same_memory(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!takes("same_memory(address, address, nbytes)", 3, count)) return nullptr;
  const void* first = PyLong_AsVoidPtr(arguments[0]);
  const void* second = PyLong_AsVoidPtr(arguments[1]);
  const std::size_t nbytes = PyLong_AsSize_t(arguments[2]);
  if (PyErr_Occurred()) return nullptr;
  return PyBool_FromLong(std::memcmp(first, second, nbytes) == 0);
}

PyObject* same_attributes(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!takes("same_attributes(objects, name, values)", 3, count)) return nullptr;
  PyObject *objects = arguments[0], *name = arguments[1], *values = arguments[2];
  if (!PyTuple_Check(objects) || !PyTuple_Check(values) || PyTuple_GET_SIZE(objects) != PyTuple_GET_SIZE(values)) {
    PyErr_SetString(PyExc_TypeError, "same_attributes(objects, name, values) takes two tuples of one length");
    return nullptr;
  }
  for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(objects); ++index) {
    PyObject* found = PyObject_GetAttr(PyTuple_GET_ITEM(objects, index), name);
    if (found == nullptr) return nullptr;
    const int same = PyObject_RichCompareBool(found, PyTuple_GET_ITEM(values, index), Py_EQ);
    Py_DECREF(found);
    if (same < 0) return nullptr;
    if (same == 0) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyCFunction by_position() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef same_memory_method = {"same_memory", by_position<same_memory>(), METH_FASTCALL,
                                  "same_memory(address, address, nbytes): whether the bytes there are equal."};
PyMethodDef same_attributes_method = {"same_attributes", by_position<same_attributes>(), METH_FASTCALL,
                                      "same_attributes(objects, name, values): whether each object has its value."};

void add(py::module_& module, PyMethodDef& method) {
  PyObject* function = PyCFunction_New(&method, nullptr);
  if (function == nullptr) throw py::error_already_set();
  module.attr(method.ml_name) = py::reinterpret_steal<py::object>(function);
}

}  // namespace

void bind_comparisons(py::module_& module) {
  add(module, same_memory_method);
  add(module, same_attributes_method);
}

}  // namespace overlap_recompute
