// Argument checks that print the argument, what was wanted and what came.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include "threads.h"

namespace embedmux {

inline void check_rank(const at::Tensor& tensor, const char* name, int64_t wanted) {
  TORCH_CHECK(tensor.dim() == wanted, name, " must have ", wanted, " dimensions, got shape ", tensor.sizes());
}

inline void check_size(const at::Tensor& tensor, const char* name, int64_t dimension, int64_t wanted) {
  TORCH_CHECK(tensor.size(dimension) == wanted, name, " must have size ", wanted, " in dimension ", dimension,
              ", got shape ", tensor.sizes());
}

inline void check_dtype(const at::Tensor& tensor, const char* name, at::ScalarType wanted) {
  TORCH_CHECK(tensor.scalar_type() == wanted, name, " must be ", wanted, ", got ", tensor.scalar_type());
}

inline void check_contiguous(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous, got strides ", tensor.strides());
}

// Offsets [n + 1] int32 of packed rows: from 0 to `rows`, never falling.
inline void check_offsets(const at::Tensor& offsets, const char* name, int64_t rows) {
  check_rank(offsets, name, 1);
  check_dtype(offsets, name, at::kInt);
  check_contiguous(offsets, name);
  TORCH_CHECK(offsets.numel() >= 1, name, " must have at least one entry");
  const int32_t* values = offsets.const_data_ptr<int32_t>();
  TORCH_CHECK(values[0] == 0 && values[offsets.numel() - 1] == rows, name, " must run from 0 to ", rows, ", got ",
              values[0], " to ", values[offsets.numel() - 1]);
  for (int64_t i = 1; i < offsets.numel(); ++i) {
    TORCH_CHECK(values[i] >= values[i - 1], name, " must not fall, got ", values[i - 1], " then ", values[i], " at ",
                i);
  }
}

}  // namespace embedmux
