// Python objects in the hands of threads that may not hold the interpreter's lock.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>

namespace overlap_recompute {

namespace py = pybind11;

// Keeps `object` alive; the last owner takes the lock to let it go, on whatever thread.
inline std::shared_ptr<void> keep_alive(py::object object) {
  return {object.release().ptr(), [](void* held) {
            if (!Py_IsInitialized()) return;  // the interpreter has gone, and the object with it
            const py::gil_scoped_acquire lock;
            Py_DECREF(static_cast<PyObject*>(held));
          }};
}

inline std::function<void()> call_python(py::object callable) {
  return [held = keep_alive(std::move(callable))] {
    const py::gil_scoped_acquire lock;
    py::reinterpret_borrow<py::object>(static_cast<PyObject*>(held.get()))();
  };
}

// Destroys without the lock: a destructor that joins a thread must not hold what that thread waits for.
struct DeleteUnlocked {
  template <class T>
  void operator()(T* object) const {
    if (Py_IsInitialized() && PyGILState_Check()) {
      const py::gil_scoped_release unlocked;
      delete object;
    } else {
      delete object;
    }
  }
};

template <class T, class... Arguments>
std::shared_ptr<T> make_unlocked(Arguments&&... arguments) {
  return std::shared_ptr<T>(new T(std::forward<Arguments>(arguments)...), DeleteUnlocked{});
}

}  // namespace overlap_recompute
