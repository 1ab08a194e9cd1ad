// embedmux::add_layer_norm on the CPU, and what it shares with embedmux::pre_norm (pre_norm.cpp).
#include "norm.h"

#include "norm_rows.h"
#include "ops.h"

namespace embedmux {
namespace {

at::Tensor with_plain_rows(const at::Tensor& tensor) {
  return tensor.stride(1) == 1 || tensor.size(1) == 1 ? tensor : tensor.contiguous();
}

at::Tensor wide_vector(const at::Tensor& tensor, const char* name, const at::Tensor& x) {
  check_rank(tensor, name, 1);
  check_size(tensor, name, 0, x.size(1));
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == x.scalar_type(), name,
              " must be float32 or ", x.scalar_type(), " like x, got ", tensor.scalar_type());
  return tensor.to(at::kFloat).contiguous();
}

template <typename T>
NormRows<T> rows_of(const NormTensors& tensors, double eps) {
  const auto read = [](const at::Tensor& tensor) {
    return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
  };
  return {read(tensors.x),
          read(tensors.residual),
          tensors.weight.const_data_ptr<float>(),
          tensors.bias.defined() ? tensors.bias.const_data_ptr<float>() : nullptr,
          static_cast<T*>(tensors.out.mutable_data_ptr()),
          tensors.sum.defined() ? static_cast<T*>(tensors.sum.mutable_data_ptr()) : nullptr,
          tensors.x.stride(0),
          tensors.residual.defined() ? tensors.residual.stride(0) : 0,
          tensors.x.size(1),
          static_cast<float>(eps),
          tensors.x_rows.defined() ? tensors.x_rows.const_data_ptr<int64_t>() : nullptr,
          tensors.residual_rows.defined() ? tensors.residual_rows.const_data_ptr<int64_t>() : nullptr};
}

}  // namespace

at::Tensor add_layer_norm_cpu(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias, double eps) {
  const NormTensors tensors = check_norm(x, residual, weight, bias, eps, false);
  run_norm(tensors, eps, NormKind::layer);
  return tensors.out;
}

NormTensors check_norm(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, double eps, bool wants_sum) {
  check_rank(x, "x", 2);
  TORCH_CHECK(x.size(1) > 0, "x must have at least one column, got shape ", x.sizes());
  const at::ScalarType dtype = x.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
              "x must be float32, bfloat16 or float16, got ", dtype);
  NormTensors tensors;
  tensors.weight = wide_vector(weight, "weight", x);
  if (bias.has_value()) tensors.bias = wide_vector(*bias, "bias", x);
  TORCH_CHECK(eps >= 0, "eps must be at least 0, got ", eps);
  if (residual.has_value()) {
    check_rank(*residual, "residual", 2);
    check_dtype(*residual, "residual", dtype);
    check_size(*residual, "residual", 0, x.size(0));
    check_size(*residual, "residual", 1, x.size(1));
    tensors.residual = with_plain_rows(*residual);
  }
  tensors.x = with_plain_rows(x);
  tensors.out = at::empty(x.sizes(), x.options());
  if (wants_sum) tensors.sum = at::empty(x.sizes(), x.options());
  return tensors;
}

void run_norm(const NormTensors& tensors, double eps, NormKind kind) {
  choose_kernel(tensors.x.scalar_type(), [&]<typename T, Isa Level>() {
    const NormRows<T> rows = rows_of<T>(tensors, eps);
    if (kind == NormKind::layer) {
      norm_rows<NormKind::layer, T, Level>(rows, tensors.out.size(0));
    } else {
      norm_rows<NormKind::rms, T, Level>(rows, tensors.out.size(0));
    }
  });
}

}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("add_layer_norm", &embedmux::add_layer_norm_cpu); }
