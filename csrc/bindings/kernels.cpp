// Replay kernels: addresses and sizes as integers, validated on the Python side.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

#include "kernels/run.h"

namespace py = pybind11;

namespace overlap_recompute {
namespace {

using Address = std::uintptr_t;

const void* input_at(Address address) { return reinterpret_cast<const void*>(address); }
void* output_at(Address address) { return reinterpret_cast<void*>(address); }
const float* statistics_at(Address address) { return reinterpret_cast<const float*>(address); }

void row_statistics(const Target& target, int dtype, Address input, Address mean, Address rstd, std::int64_t rows,
                    std::int64_t columns, float epsilon) {
  const StatisticsArguments arguments{input_at(input), static_cast<float*>(output_at(mean)),
                                      static_cast<float*>(output_at(rstd)), rows, columns, epsilon,
                                      static_cast<DType>(dtype)};
  run(arguments, target);
}

void normalize(const Target& target, int dtype, int parameter_dtype, Address input, Address weight, Address bias,
               Address mean, Address rstd, Address output, std::int64_t rows, std::int64_t columns) {
  const NormalizeArguments arguments{
      input_at(input),     input_at(weight),   input_at(bias), statistics_at(mean),
      statistics_at(rstd), output_at(output),  rows,           columns,
      static_cast<DType>(dtype), static_cast<DType>(parameter_dtype)};
  run(arguments, target);
}

void bias_gelu(const Target& target, int dtype, int form, Address input, Address bias, Address output,
               std::int64_t rows, std::int64_t columns) {
  const BiasGeluArguments arguments{input_at(input), input_at(bias), output_at(output), rows,
                                    columns, static_cast<DType>(dtype), static_cast<GeluForm>(form)};
  run(arguments, target);
}

void swiglu(const Target& target, int dtype, Address input, Address bias, Address output, std::int64_t rows,
            std::int64_t columns) {
  const SwigluArguments arguments{input_at(input), input_at(bias), output_at(output), rows, columns,
                                  static_cast<DType>(dtype)};
  run(arguments, target);
}

void bias_dropout_add(const Target& target, int dtype, Address input, Address bias, Address residual, Address output,
                      std::int64_t rows, std::int64_t columns, std::uint32_t threshold, float scale,
                      std::uint64_t seed, std::uint64_t offset) {
  const BiasDropoutAddArguments arguments{input_at(input),   input_at(bias), input_at(residual),
                                          output_at(output), rows,           columns,
                                          static_cast<DType>(dtype), threshold, scale, seed, offset};
  run(arguments, target);
}

}  // namespace

void bind_kernels(py::module_& module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Target>(module, "Target", "Where a kernel runs: device -1 is the CPU.")
      .def(py::init([](int device, Address stream, int max_blocks, std::string instruction_set) {
             return Target{device, stream, max_blocks, std::move(instruction_set)};
           }),
           py::arg("device"), py::arg("stream"), py::arg("max_blocks"), py::arg("instruction_set"));
  module.def("instruction_set", [] { return cpu_kernels()->instruction_set; }, "What the CPU twins use here.");
  module.def("row_statistics", &row_statistics, Unlocked());
  module.def("normalize", &normalize, Unlocked());
  module.def("bias_gelu", &bias_gelu, Unlocked());
  module.def("swiglu", &swiglu, Unlocked());
  module.def("bias_dropout_add", &bias_dropout_add, Unlocked());
}

}  // namespace overlap_recompute
