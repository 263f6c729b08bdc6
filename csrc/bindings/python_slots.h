// Attributes of Python classes with __slots__, read and written where they lie in the object.
#pragma once

#include <pybind11/pybind11.h>
// After Python.h.
#include <structmember.h>

#include <string>

namespace overlap_recompute {

namespace py = pybind11;

// One slot of one class. The caller knows that an object is of that very class.
class Slot {
 public:
  // Throws TypeError unless the class says itself where the attribute lies.
  Slot(py::handle type, const char* name) {
    const py::object found = type.attr(name);
    if (Py_TYPE(found.ptr()) == &PyMemberDescr_Type) {
      const PyMemberDef* member = reinterpret_cast<PyMemberDescrObject*>(found.ptr())->d_member;
      if (member->type == T_OBJECT_EX) {
        offset_ = member->offset;
        return;
      }
    }
    throw py::type_error(std::string(name) + " is no slot of its class");
  }

  // Borrowed; null where nothing was set yet.
  PyObject* get(PyObject* object) const { return *place(object); }

  void set(PyObject* object, py::object value) const {
    PyObject* before = *place(object);
    *place(object) = value.release().ptr();
    Py_XDECREF(before);
  }

 private:
  PyObject** place(PyObject* object) const {
    return reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset_);
  }

  Py_ssize_t offset_ = 0;
};

}  // namespace overlap_recompute
