// Where the runtime's classes keep what bookkeeping.cpp and outputs.cpp read and write.
#pragma once

#include "bindings/python_slots.h"

#include <utility>

namespace overlap_recompute {

inline py::object taken(PyObject* made) {
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

// Nothing where torch has refused with a RuntimeError.
inline py::object unless_refused(PyObject* made) {
  if (made == nullptr && PyErr_ExceptionMatches(PyExc_RuntimeError)) {
    PyErr_Clear();
    return {};
  }
  return taken(made);
}

inline py::object borrowed(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

// Interned, as the names in Python code are: Python finds attributes by the name's address first.
inline py::object interned(const char* name) { return taken(PyUnicode_InternFromString(name)); }

struct Names {
  py::object version = interned("_version"), untyped_storage = interned("untyped_storage"),
             cdata = interned("_cdata"), nbytes = interned("nbytes"), numel = interned("numel"),
             dtype = interned("dtype"), requires_grad = interned("requires_grad"), detach = interned("detach"),
             bring_back = interned("bring_back"), is_complex = interned("is_complex"), size = interned("size"),
             stride = interned("stride"), storage_offset = interned("storage_offset");
};

// Whether both are numbers, and equal.
inline bool same_number(PyObject* first, PyObject* second) {
  if (first == second) return true;
  if (first == nullptr || second == nullptr || !PyLong_CheckExact(first) || !PyLong_CheckExact(second)) return false;
  const int same = PyObject_RichCompareBool(first, second, Py_EQ);
  if (same < 0) throw py::error_already_set();
  return same == 1;
}

inline py::object plus(PyObject* number, PyObject* more) { return taken(PyNumber_Add(number, more)); }

inline py::object minus(PyObject* number, PyObject* less) { return taken(PyNumber_Subtract(number, less)); }

inline PyObject* find(PyObject* table, PyObject* key) {  // borrowed
  PyObject* found = PyDict_GetItemWithError(table, key);
  if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

inline bool is_of(PyObject* object, PyObject* type) {
  return object != nullptr && reinterpret_cast<PyObject*>(Py_TYPE(object)) == type;
}

inline py::object new_of(PyObject* type) {
  auto* made = reinterpret_cast<PyTypeObject*>(type);
  return taken(made->tp_alloc(made, 0));
}

inline PyObject* type_in(const py::dict& classes, const char* name) { return classes[name].ptr(); }

// The classes of the runtime, and where their attributes lie.
struct Layout {
  explicit Layout(const py::dict& classes)
      : owned(classes),
        tensor(type_in(classes, "Tensor")), parameter(type_in(classes, "Parameter")),
        state(type_in(classes, "RuntimeState")), call(type_in(classes, "UnitCall")),
        entry(type_in(classes, "Entry")), handle(type_in(classes, "Handle")), kept(type_in(classes, "Kept")),
        output(type_in(classes, "OutputRef")), ledger(type_in(classes, "Ledger")), tally(type_in(classes, "Tally")),
        dropped_phase(type_in(classes, "DROPPED")), forget_output(type_in(classes, "forget_output")) {}

  py::dict owned;
  Names names;
  py::int_ zero{0}, one{1}, no_version{-1}, first_output{~0};
  PyObject *tensor, *parameter;

  struct State {
    explicit State(PyObject* type) : type(type) {}
    PyObject* type;
    Slot running{type, "running"}, argument{type, "argument"}, parameters{type, "parameters"},
        outputs{type, "outputs"}, statics{type, "static"}, kept{type, "kept"}, seen{type, "seen"},
        verify{type, "verify"}, ledger{type, "ledger"}, last_read{type, "last_read"},
        replaying{type, "replaying"}, captured{type, "captured"};
  } state;

  struct Call {
    explicit Call(PyObject* type) : type(type) {}
    PyObject* type;
    Slot state{type, "state"}, args{type, "args"}, saved_count{type, "saved_count"}, entries{type, "entries"},
        tally{type, "tally"}, untouched{type, "untouched"}, fence{type, "fence"}, unit{type, "unit"},
        number{type, "number"}, microbatch{type, "microbatch"}, hidden{type, "hidden"},
        phase{type, "phase"}, output_count{type, "output_count"};
  } call;

  struct Entry {
    explicit Entry(PyObject* type) : type(type) {}
    PyObject* type;
    Slot position{type, "position"}, nbytes{type, "nbytes"}, numel{type, "numel"}, dtype{type, "dtype"},
        account{type, "account"}, readers{type, "readers"}, sharers{type, "sharers"}, tensor{type, "tensor"},
        version{type, "version"}, present{type, "present"}, prefetched{type, "prefetched"}, storage{type, "storage"},
        view{type, "view"};
  } entry;

  struct Handle {
    explicit Handle(PyObject* type) : type(type) {}
    PyObject* type;
    Slot call{type, "call"}, entry{type, "entry"}, view{type, "view"}, requires_grad{type, "requires_grad"};
  } handle;

  struct Kept {
    explicit Kept(PyObject* type) : type(type) {}
    PyObject* type;
    Slot tensor{type, "tensor"}, version{type, "version"};
  } kept;

  struct Output {
    explicit Output(PyObject* type) : type(type) {}
    PyObject* type;
    Slot key{type, "key"}, table{type, "table"}, call{type, "call"}, position{type, "position"},
        version{type, "version"}, view{type, "view"}, dtype{type, "dtype"}, nbytes{type, "nbytes"},
        account{type, "account"};
  } output;

  struct Ledger {
    explicit Ledger(PyObject* type) : type(type) {}
    PyObject* type;
    Slot kept{type, "kept_bytes"}, dropped{type, "dropped_bytes"}, recomputed{type, "recomputed_bytes"},
        held_peak{type, "held_peak_bytes"};
  } ledger;

  struct Tally {
    explicit Tally(PyObject* type) : type(type) {}
    PyObject* type;
    Slot dropped{type, "dropped_bytes"};
  } tally;

  PyObject *dropped_phase, *forget_output;

  py::object of(PyObject* object, const py::object& name) const { return taken(PyObject_GetAttr(object, name.ptr())); }

  py::object ask(PyObject* object, const py::object& name) const {
    return taken(PyObject_CallMethodNoArgs(object, name.ptr()));
  }

  // Nothing for a tensor without a version: one that was made in inference mode.
  py::object known_version(PyObject* tensor) const {
    return unless_refused(PyObject_GetAttr(tensor, names.version.ptr()));
  }
};

// The storage of a tensor; none where a twin must look.
inline py::object storage_of(const Layout& at, PyObject* tensor) {
  return unless_refused(PyObject_CallMethodNoArgs(tensor, at.names.untyped_storage.ptr()));
}

// Adds the bytes of a storage that a call drops.
inline void count_dropped(const Layout& at, PyObject* state, PyObject* call, const py::object& nbytes) {
  PyObject *ledger = at.state.ledger.get(state), *tally = at.call.tally.get(call);
  py::object in_all = plus(at.ledger.dropped.get(ledger), nbytes.ptr());
  py::object of_layer = plus(at.tally.dropped.get(tally), nbytes.ptr());
  at.ledger.dropped.set(ledger, std::move(in_all));
  at.tally.dropped.set(tally, std::move(of_layer));
}

// Twin: Entry.__init__.
inline py::object new_entry(const Layout& at, PyObject* position, const py::object& nbytes, PyObject* tensor,
                            PyObject* account) {
  py::object numel = at.ask(tensor, at.names.numel), dtype = at.of(tensor, at.names.dtype);
  py::object entry = new_of(at.entry.type);
  at.entry.position.set(entry.ptr(), borrowed(position));
  at.entry.nbytes.set(entry.ptr(), nbytes);
  at.entry.numel.set(entry.ptr(), std::move(numel));
  at.entry.dtype.set(entry.ptr(), std::move(dtype));
  at.entry.account.set(entry.ptr(), borrowed(account));
  at.entry.readers.set(entry.ptr(), at.zero);
  at.entry.sharers.set(entry.ptr(), at.one);
  at.entry.tensor.set(entry.ptr(), py::none());
  at.entry.present.set(entry.ptr(), py::bool_(false));
  at.entry.prefetched.set(entry.ptr(), py::bool_(false));
  return entry;
}

// Twin: Handle.__init__.
inline py::object new_handle(const Layout& at, PyObject* call, PyObject* entry, py::object view,
                             PyObject* requires_grad) {
  // First of all: making an object may run the garbage collector, and with it the end of the entry's last other handle.
  at.entry.readers.set(entry, plus(at.entry.readers.get(entry), at.one.ptr()));
  py::object handle = new_of(at.handle.type);
  at.handle.call.set(handle.ptr(), borrowed(call));
  at.handle.entry.set(handle.ptr(), borrowed(entry));
  at.handle.view.set(handle.ptr(), std::move(view));
  at.handle.requires_grad.set(handle.ptr(), borrowed(requires_grad));
  return handle;
}

// Twin: Ledger.bring_back, where backward waits for the storage.
inline void bring_back(const Layout& at, PyObject* ledger, PyObject* account) {
  PyObject* nbytes = at.entry.nbytes.get(account);
  py::object dropped = minus(at.ledger.dropped.get(ledger), nbytes);
  py::object recomputed = plus(at.ledger.recomputed.get(ledger), nbytes);
  py::object held = plus(at.ledger.kept.get(ledger), recomputed.ptr());
  const int is_peak = PyObject_RichCompareBool(held.ptr(), at.ledger.held_peak.get(ledger), Py_GT);
  if (is_peak < 0) throw py::error_already_set();
  at.entry.present.set(account, py::bool_(true));
  at.ledger.dropped.set(ledger, std::move(dropped));
  at.ledger.recomputed.set(ledger, std::move(recomputed));
  if (is_peak == 1) at.ledger.held_peak.set(ledger, std::move(held));
}

// Twin: UnitCall.fill.
inline void fill(const Layout& at, PyObject* state, PyObject* call, PyObject* entry, PyObject* tensor) {
  py::object version = at.of(tensor, at.names.version);
  const bool has_graph = at.of(tensor, at.names.requires_grad).ptr() != Py_False;
  py::object plain = has_graph ? at.ask(tensor, at.names.detach) : borrowed(tensor);
  PyObject* shared = at.entry.account.get(entry);
  PyObject *account = shared == Py_None ? entry : shared, *ledger = at.state.ledger.get(state);
  at.entry.version.set(entry, std::move(version));
  at.entry.tensor.set(entry, std::move(plain));
  if (at.entry.present.get(account) != Py_False) return;
  if (at.call.hidden.get(call) == Py_False) {
    bring_back(at, ledger, account);
  } else {
    PyObject* arguments[] = {ledger, account, Py_True};
    taken(PyObject_VectorcallMethod(at.names.bring_back.ptr(), arguments, 3, nullptr));
  }
}

// What a function is bound to: a tuple of layout, state and twin, which Python's garbage collector sees through.
inline const Layout& layout_of(PyObject* self) {
  return *static_cast<const Layout*>(PyCapsule_GetPointer(PyTuple_GET_ITEM(self, 0), nullptr));
}
inline PyObject* state_of(PyObject* self) { return PyTuple_GET_ITEM(self, 1); }
inline PyObject* twin_of(PyObject* self) { return PyTuple_GET_ITEM(self, 2); }

inline py::object bound(PyMethodDef& method, const py::capsule& layout, const py::object& state,
                        const py::object& twin) {
  if (!is_of(state.ptr(), layout.get_pointer<Layout>()->state.type)) {
    throw py::type_error("a function is for an object of the class RuntimeState that was laid out");
  }
  return taken(PyCFunction_New(&method, py::make_tuple(layout, state, twin).ptr()));
}

}  // namespace overlap_recompute
