// The Python module `overlap_recompute.ops._extension`.
#include <pybind11/pybind11.h>

#include "device/backend.h"

namespace py = pybind11;

namespace overlap_recompute {

const char* build_record();
void bind_kernels(py::module_& module);
void bind_trace(py::module_& module);
void bind_lane(py::module_& module);
void bind_comparisons(py::module_& module);
void bind_bookkeeping(py::module_& module);
void bind_outputs(py::module_& module);

namespace {

void raise_pending_signal() {
  const py::gil_scoped_acquire lock;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace
}  // namespace overlap_recompute

PYBIND11_MODULE(_extension, module) {
  using namespace overlap_recompute;
  module.doc() = "Lane, event ring, emulated link, replay kernels and bookkeeping; see docs/extension.md.";
  module.attr("BUILD_RECORD") = build_record();
  module.def("cuda_device_count", &cuda_device_count,
             "CUDA devices that this build can use; 0 without CUDA, a driver or a device.");
  set_interrupt_check(raise_pending_signal);
  bind_kernels(module);
  bind_trace(module);
  bind_lane(module);
  bind_comparisons(module);
  bind_bookkeeping(module);
  bind_outputs(module);
}
