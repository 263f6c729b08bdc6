// What the runtime does for every saved tensor.
//
// NOTE [ twins ]
// 1. Each function has a twin in overlap_recompute/runtime, which does the same on the same objects in all cases.
// 2. These here do the usual case alone. Whatever is unusual goes to the twin, before anything was changed.
// 3. They know tensors by what Python shows of them, and include no torch header.
#include "bindings/bookkeeping_layout.h"

#include <memory>

namespace overlap_recompute {
namespace {

// Handle and entry for the tensor at `position` among those that the running call saves.
py::object dropped(const Layout& at, PyObject* state, PyObject* call, PyObject* tensor, PyObject* position) {
  const py::object storage = storage_of(at, tensor);
  if (!storage) return {};
  const py::object key = at.of(storage.ptr(), at.names.cdata);
  for (const Slot& table : {at.state.outputs, at.state.statics, at.state.kept, at.state.seen}) {
    if (find(table.get(state), key.ptr()) != nullptr) return {};
  }
  const py::object nbytes = at.ask(storage.ptr(), at.names.nbytes);
  py::object reference = taken(PyWeakref_NewRef(storage.ptr(), nullptr));
  const py::object entry = new_entry(at, position, nbytes, tensor, Py_None);
  at.entry.storage.set(entry.ptr(), std::move(reference));
  if (PyDict_SetItem(at.call.entries.get(call), position, entry.ptr()) != 0 ||
      PyDict_SetItem(at.state.seen.get(state), key.ptr(), entry.ptr()) != 0) {
    throw py::error_already_set();
  }
  count_dropped(at, state, call, nbytes);
  return new_handle(at, call, entry.ptr(), py::none(), Py_False);
}

// Twin: Recorder.pack.
py::object pack(const Layout& at, PyObject* state, PyObject* tensor) {
  PyObject* call = at.state.running.get(state);
  if (!is_of(call, at.call.type)) call = nullptr;
  PyObject* position = call != nullptr ? at.call.saved_count.get(call) : nullptr;
  py::object packed;
  if (call != nullptr && tensor == at.state.argument.get(state)) {
    packed = borrowed(PyTuple_GET_ITEM(at.call.args.get(call), 0));
  } else if (is_of(tensor, at.parameter)) {
    const py::object identity = taken(PyLong_FromVoidPtr(tensor));
    PyObject* shared = find(at.state.parameters.get(state), identity.ptr());
    if (!is_of(shared, at.kept.type)) return {};
    if (!same_number(at.kept.version.get(shared), at.of(tensor, at.names.version).ptr())) return {};
    packed = borrowed(shared);
  } else if (call != nullptr && is_of(tensor, at.tensor) && at.state.verify.get(state) == Py_False) {
    packed = dropped(at, state, call, tensor, position);
  }
  if (packed && call != nullptr) at.call.saved_count.set(call, plus(position, at.one.ptr()));
  return packed;
}

// Twin: the method `take` of what was packed.
py::object take(const Layout& at, PyObject* state, PyObject* packed) {
  if (is_of(packed, at.kept.type)) {
    py::object tensor = borrowed(at.kept.tensor.get(packed));
    PyObject* version = at.kept.version.get(packed);
    const bool is_unknown = same_number(version, at.no_version.ptr());
    if (!is_unknown && !same_number(version, at.of(tensor.ptr(), at.names.version).ptr())) return {};
    return tensor;
  }
  if (!is_of(packed, at.handle.type)) return {};
  PyObject *call = at.handle.call.get(packed), *entry = at.handle.entry.get(packed);
  py::object found = borrowed(at.entry.tensor.get(entry));
  if (found.is_none() || at.handle.view.get(packed) != Py_None || at.call.untouched.get(call) != Py_False ||
      at.call.state.get(call) != state || at.call.fence.get(call) != Py_None) {
    return {};
  }
  if (!same_number(at.entry.version.get(entry), at.of(found.ptr(), at.names.version).ptr())) return {};
  const py::object read = taken(
      PyTuple_Pack(3, at.call.unit.get(call), at.call.number.get(call), at.call.microbatch.get(call)));
  at.state.last_read.set(state, read);
  return found;
}

// Twin: Replayer._capture.
py::object capture(const Layout& at, PyObject* state, PyObject* tensor) {
  PyObject *call = at.state.replaying.get(state), *position = at.state.captured.get(state);
  if (!is_of(call, at.call.type)) return {};
  const py::object next = plus(position, at.one.ptr());
  const py::object entry = borrowed(find(at.call.entries.get(call), position));
  if (entry) {
    if (at.of(tensor, at.names.dtype).ptr() != at.entry.dtype.get(entry.ptr())) return {};
    if (!same_number(at.ask(tensor, at.names.numel).ptr(), at.entry.numel.get(entry.ptr()))) return {};
    at.state.captured.set(state, next);
    fill(at, state, call, entry.ptr(), tensor);
  } else {
    at.state.captured.set(state, next);
  }
  return py::none();
}

template <py::object (*usual)(const Layout&, PyObject*, PyObject*)>
PyObject* hook(PyObject* self, PyObject* tensor) {
  try {
    if (py::object done = usual(layout_of(self), state_of(self), tensor)) return done.release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
  return PyObject_CallOneArg(twin_of(self), tensor);
}

PyMethodDef pack_method = {"pack", hook<pack>, METH_O, "Pack hook of the forward pass."};
PyMethodDef take_method = {"take", hook<take>, METH_O, "Unpack hook."};
PyMethodDef capture_method = {"capture", hook<capture>, METH_O, "Pack hook of replays."};

}  // namespace

void bind_bookkeeping(py::module_& module) {
  module.def(
      "bookkeeping_layout",
      [](const py::dict& classes) {
        auto layout = std::make_unique<Layout>(classes);
        py::capsule capsule(layout.get(), [](void* held) { delete static_cast<Layout*>(held); });
        layout.release();
        return capsule;
      },
      "Where the attributes of the runtime's classes lie; TypeError for a class that does not say.");
  module.def("pack_hook", [](const py::capsule& layout, const py::object& state, const py::object& twin) {
    return bound(pack_method, layout, state, twin);
  });
  module.def("take_hook", [](const py::capsule& layout, const py::object& state, const py::object& twin) {
    return bound(take_method, layout, state, twin);
  });
  module.def("capture_hook", [](const py::capsule& layout, const py::object& state, const py::object& twin) {
    return bound(capture_method, layout, state, twin);
  });
}

}  // namespace overlap_recompute
