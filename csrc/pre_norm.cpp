// embedmux::pre_norm on the CPU: the rows of norm_rows.h, with the sum written on the way.
#include <optional>
#include <tuple>

#include "norm.h"

namespace embedmux {
namespace {

std::tuple<at::Tensor, at::Tensor> pre_norm_cpu(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                                                const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                                double eps, c10::string_view kind) {
  TORCH_CHECK(kind == "layer" || kind == "rms", "kind must be layer or rms, got '", kind, "'");
  const NormTensors tensors = check_norm(x, residual, weight, bias, eps, true);
  run_norm(tensors, eps, kind == "layer" ? NormKind::layer : NormKind::rms);
  return {tensors.out, tensors.sum};
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("pre_norm", &embedmux::pre_norm_cpu); }
