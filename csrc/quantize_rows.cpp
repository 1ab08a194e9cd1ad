// embedmux::quantize_rows on the CPU: one vector after the other through its encoder.
#include <algorithm>
#include <string>

#include "row_encode.h"

namespace embedmux {
namespace {

constexpr int64_t kElementsPerThread = 16384;

at::Tensor quantize_rows_cpu(const at::Tensor& rows, c10::string_view encoding,
                             const std::optional<at::Tensor>& ranges) {
  check_rank(rows, "rows", 2);
  check_dtype(rows, "rows", at::kFloat);
  TORCH_CHECK(rows.size(1) > 0, "rows must have at least one column, got shape ", rows.sizes());
  const RowEncoder encoder(std::string(encoding), ranges, rows.size(1));
  const at::Tensor plain = rows.contiguous();
  at::Tensor out = at::empty({rows.size(0), encoder.width()}, rows.options().dtype(encoder.dtype()));
  const float* source = plain.const_data_ptr<float>();
  auto* target = static_cast<uint8_t*>(out.mutable_data_ptr());
  const int64_t width = rows.size(1);
  const int64_t bytes = encoder.row_bytes();
  parallel_for(0, rows.size(0), std::max<int64_t>(1, kElementsPerThread / width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) encoder.encode(source + i * width, target + i * bytes);
  });
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("quantize_rows", &embedmux::quantize_rows_cpu); }
