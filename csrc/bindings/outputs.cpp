// What the runtime does for the outputs of dropped units; see NOTE [ twins ] in bookkeeping.cpp.
#include "bindings/bookkeeping_layout.h"

namespace overlap_recompute {
namespace {

py::object view_of(const Layout& at, PyObject* tensor) {
  const py::object size = at.ask(tensor, at.names.size), stride = at.ask(tensor, at.names.stride),
                   offset = at.ask(tensor, at.names.storage_offset);
  return taken(PyTuple_Pack(3, size.ptr(), stride.ptr(), offset.ptr()));
}

// Twin: Recorder._register. One tensor, on a storage that nobody has seen: what most units return.
py::object remember(const Layout& at, PyObject* state, PyObject* call, PyObject* tensor) {
  if (!is_of(call, at.call.type) || !is_of(tensor, at.tensor) || at.state.verify.get(state) != Py_False) return {};
  const py::object storage = storage_of(at, tensor);
  if (!storage) return {};
  const py::object key = at.of(storage.ptr(), at.names.cdata);
  for (const Slot& table : {at.state.outputs, at.state.statics, at.state.kept, at.state.seen}) {
    if (find(table.get(state), key.ptr()) != nullptr) return {};
  }
  py::object version = at.known_version(tensor);
  if (!version) return {};
  py::object nbytes = at.ask(storage.ptr(), at.names.nbytes), dtype = at.of(tensor, at.names.dtype);
  py::object view = view_of(at, tensor);
  PyObject* arguments[] = {storage.ptr(), at.forget_output};
  const py::object output = taken(PyObject_Vectorcall(at.output.type, arguments, 2, nullptr));
  PyObject* table = at.state.outputs.get(state);
  at.output.key.set(output.ptr(), key);
  at.output.table.set(output.ptr(), borrowed(table));
  at.output.call.set(output.ptr(), borrowed(call));
  at.output.position.set(output.ptr(), at.first_output);
  at.output.version.set(output.ptr(), std::move(version));
  at.output.view.set(output.ptr(), std::move(view));
  at.output.dtype.set(output.ptr(), std::move(dtype));
  at.output.nbytes.set(output.ptr(), std::move(nbytes));
  at.output.account.set(output.ptr(), py::none());
  if (PyDict_SetItem(table, key.ptr(), output.ptr()) != 0) throw py::error_already_set();
  at.call.output_count.set(call, at.one);
  return py::none();
}

// Twin: OutputRef.handle. The tensor is as the unit returned it, and of no complex type.
py::object stand_in(const Layout& at, PyObject* state, PyObject* output, PyObject* tensor, PyObject* requires_grad) {
  if (!is_of(output, at.output.type)) return {};
  PyObject *call = at.output.call.get(output), *position = at.output.position.get(output);
  if (at.call.phase.get(call) != at.dropped_phase) return {};
  const py::object dtype = at.of(tensor, at.names.dtype);
  if (dtype.ptr() != at.output.dtype.get(output) || at.of(dtype.ptr(), at.names.is_complex).ptr() != Py_False) {
    return {};
  }
  if (!same_number(at.of(tensor, at.names.version).ptr(), at.output.version.get(output))) return {};
  const py::object view = view_of(at, tensor);
  const int is_whole = PyObject_RichCompareBool(view.ptr(), at.output.view.get(output), Py_EQ);
  if (is_whole < 0) throw py::error_already_set();
  if (is_whole == 0) return {};
  PyObject* entries = at.call.entries.get(call);
  py::object entry = borrowed(find(entries, position));
  if (!entry) {
    if (at.output.account.get(output) != Py_None) return {};
    const py::object nbytes = borrowed(at.output.nbytes.get(output));
    entry = new_entry(at, position, nbytes, tensor, Py_None);
    at.entry.view.set(entry.ptr(), borrowed(at.output.view.get(output)));
    if (PyDict_SetItem(entries, position, entry.ptr()) != 0) throw py::error_already_set();
    count_dropped(at, state, call, nbytes);
  }
  return new_handle(at, call, entry.ptr(), py::none(), requires_grad);
}

// Twin: `_fill_output` of replay.py. The output has the geometry that it had in the forward pass.
py::object fill_output(const Layout& at, PyObject* state, PyObject* call, PyObject* entry, PyObject* tensor) {
  if (!is_of(call, at.call.type) || !is_of(entry, at.entry.type) || !is_of(tensor, at.tensor)) return {};
  const py::object storage = at.ask(tensor, at.names.untyped_storage), view = view_of(at, tensor);
  if (at.of(tensor, at.names.dtype).ptr() != at.entry.dtype.get(entry)) return {};
  if (!same_number(at.ask(storage.ptr(), at.names.nbytes).ptr(), at.entry.nbytes.get(entry))) return {};
  const int is_alike = PyObject_RichCompareBool(view.ptr(), at.entry.view.get(entry), Py_EQ);
  if (is_alike < 0) throw py::error_already_set();
  if (is_alike == 0) return {};
  fill(at, state, call, entry, tensor);
  return py::none();
}

PyObject* ask_twin(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return PyObject_Vectorcall(twin_of(self), arguments, static_cast<std::size_t>(count), nullptr);
}

template <class Usual>
PyObject* answer(PyObject* self, PyObject* const* arguments, Py_ssize_t count, Py_ssize_t wanted, Usual usual) {
  try {
    if (count == wanted) {
      if (py::object done = usual(layout_of(self), state_of(self))) return done.release().ptr();
    }
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
  return ask_twin(self, arguments, count);
}

PyObject* remember_output(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return answer(self, arguments, count, 2, [arguments](const Layout& at, PyObject* state) {
    return remember(at, state, arguments[0], arguments[1]);
  });
}

PyObject* handle_of_output(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return answer(self, arguments, count, 3, [arguments](const Layout& at, PyObject* state) {
    return stand_in(at, state, arguments[0], arguments[1], arguments[2]);
  });
}

PyObject* fill_output(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return answer(self, arguments, count, 3, [arguments](const Layout& at, PyObject* state) {
    return fill_output(at, state, arguments[0], arguments[1], arguments[2]);
  });
}

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyCFunction by_position() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef remember_method = {"remember_output", by_position<remember_output>(), METH_FASTCALL,
                               "remember_output(call, output)"};
PyMethodDef handle_method = {"handle_of_output", by_position<handle_of_output>(), METH_FASTCALL,
                             "handle_of_output(output, tensor, requires_grad)"};
PyMethodDef fill_method = {"fill_output", by_position<fill_output>(), METH_FASTCALL,
                           "fill_output(call, entry, tensor)"};

}  // namespace

void bind_outputs(py::module_& module) {
  module.def("remember_output", [](const py::capsule& layout, const py::object& state, const py::object& twin) {
    return bound(remember_method, layout, state, twin);
  });
  module.def("handle_of_output", [](const py::capsule& layout, const py::object& state, const py::object& twin) {
    return bound(handle_method, layout, state, twin);
  });
  module.def("fill_output", [](const py::capsule& layout, const py::object& state, const py::object& twin) {
    return bound(fill_method, layout, state, twin);
  });
}

}  // namespace overlap_recompute
