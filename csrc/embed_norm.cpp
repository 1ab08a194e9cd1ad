// embedmux::embed_norm on the CPU: the rows of norm_rows.h, taken from two tables.
#include "norm.h"
#include "take_rows.h"

namespace embedmux {
namespace {

at::Tensor embed_norm(const at::Tensor& words, const at::Tensor& token_ids, const at::Tensor& added,
                      const at::Tensor& places, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check_taken(words, "words", token_ids, "token_ids");
  check_taken(added, "added", places, "places");
  check_dtype(added, "added", words.scalar_type());
  check_size(added, "added", 1, words.size(1));
  check_size(places, "places", 0, token_ids.size(0));
  NormTensors tensors = check_norm(words.narrow(0, 0, 0), std::nullopt, weight, bias, eps, false);
  tensors.x = words, tensors.residual = added;
  tensors.x_rows = token_ids, tensors.residual_rows = places;
  tensors.out = at::empty({token_ids.size(0), words.size(1)}, words.options());
  run_norm(tensors, eps, NormKind::layer);
  return tensors.out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("embed_norm", &embedmux::embed_norm); }
