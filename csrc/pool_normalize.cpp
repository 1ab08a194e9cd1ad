// embedmux::pool_normalize on the CPU: one pass over a sequence's rows, float32 sums in token order.
#include <string>

#include "pooling.h"

namespace embedmux {
namespace {

template <typename T>
void pool_all(const at::Tensor& hidden, const int32_t* offsets, Pooling pooling, bool normalize,
              const at::Tensor& out) {
  const PackedRows<T> rows(hidden, at::Tensor());
  const int64_t width = out.size(1);
  float* target = out.mutable_data_ptr<float>();
  parallel_for(0, out.size(0), kSequencesPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      pool_rows(rows.sequence(offsets[s], offsets[s + 1], pooling), width, normalize, target + s * width);
    }
  });
}

at::Tensor pool_normalize_cpu(const at::Tensor& hidden, const at::Tensor& offsets, c10::string_view pooling_name,
                              int64_t dimensions, bool normalize) {
  check_hidden(hidden, dimensions);
  check_rising_offsets(offsets, hidden.size(0));
  const Pooling pooling = parse_pooling(std::string(pooling_name));
  const int32_t* values = offsets.const_data_ptr<int32_t>();
  const int64_t sequences = offsets.numel() - 1;
  const at::Tensor rows = with_plain_rows(hidden);
  at::Tensor out = at::empty({sequences, dimensions}, hidden.options().dtype(at::kFloat));
  with_element_type(hidden.scalar_type(),
                    [&](auto element) { pool_all<decltype(element)>(rows, values, pooling, normalize, out); });
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("pool_normalize", &embedmux::pool_normalize_cpu); }
