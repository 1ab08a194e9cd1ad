// What the ops that pool share: their arguments' checks, and which rows of a packed batch a sequence's vector is from.
#pragma once

#include <string>

#include "row_pool.h"
#include "tensors.h"

namespace embedmux {

enum class Pooling { mean, cls, last };

constexpr int64_t kSequencesPerThread = 8;

inline Pooling parse_pooling(const std::string& name) {
  if (name == "mean") return Pooling::mean;
  if (name == "cls") return Pooling::cls;
  TORCH_CHECK(name == "last", "pooling must be mean, cls or last, got '", name, "'");
  return Pooling::last;
}

inline void check_hidden(const at::Tensor& hidden, int64_t dimensions) {
  check_rank(hidden, "hidden", 2);
  const at::ScalarType dtype = hidden.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
              "hidden must be float32, bfloat16 or float16, got ", dtype);
  TORCH_CHECK(dimensions >= 1 && dimensions <= hidden.size(1), "dimensions must be from 1 to the hidden size ",
              hidden.size(1), ", got ", dimensions);
}

// Offsets [n + 1] of packed rows in which every sequence has a row to pool.
inline void check_rising_offsets(const at::Tensor& offsets, int64_t rows) {
  check_offsets(offsets, "offsets", rows);
  const int32_t* values = offsets.const_data_ptr<int32_t>();
  for (int64_t s = 0; s + 1 < offsets.numel(); ++s) {
    TORCH_CHECK(values[s + 1] > values[s], "offsets must give every sequence a row to pool, sequence ", s, " has none");
  }
}

// Values of a row side by side; the rows may stand apart.
inline at::Tensor with_plain_rows(const at::Tensor& tensor) {
  return tensor.stride(1) == 1 || tensor.size(1) == 1 ? tensor : tensor.contiguous();
}

// Calls visit with a value of the type the row functions take for a checked dtype.
template <typename Visit>
void with_element_type(at::ScalarType dtype, const Visit& visit) {
  if (dtype == at::kFloat) return visit(float{});
  if (dtype == at::kBFloat16) return visit(uint16_t{});
  visit(Float16{});
}

// hidden and residual (undefined: none) of a whole batch, both with plain rows.
template <typename T>
struct PackedRows {
  PackedRows(const at::Tensor& hidden, const at::Tensor& residual_or_none)
      : rows(static_cast<const T*>(hidden.const_data_ptr())),
        residual(residual_or_none.defined() ? static_cast<const T*>(residual_or_none.const_data_ptr()) : nullptr),
        stride(hidden.stride(0)),
        residual_stride(residual == nullptr ? 0 : residual_or_none.stride(0)) {}

  // What is pooled of the rows [begin, end).
  SequenceRows<T> sequence(int64_t begin, int64_t end, Pooling pooling) const {
    const int64_t first = pooling == Pooling::last ? end - 1 : begin;
    const T* added = residual == nullptr ? nullptr : residual + first * residual_stride;
    return {rows + first * stride, added, pooling == Pooling::mean ? end - begin : 1, stride, residual_stride};
  }

  const T* rows;
  const T* residual;
  int64_t stride, residual_stride;
};

}  // namespace embedmux
