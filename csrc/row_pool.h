// A sequence's rows -> one float32 vector. pool_normalize and pool_encode share it, so that their bits are the same.
#pragma once

#include <cstdint>

#include "half.h"

namespace embedmux {

// The rows [first, first + count), `stride` elements apart; `residual`, which may be null, is added to each in float32.
// T is float, uint16_t (bfloat16) or Float16.
template <typename T>
struct SequenceRows {
  const T* first;
  const T* residual;
  int64_t count, stride, residual_stride;
};

// The mean of the rows' first `width` values (of one row: the row itself), brought to length one if `normalize`.
template <typename T>
void pool_rows(const SequenceRows<T>& rows, int64_t width, bool normalize, float* out);

// out / max(its Euclidean norm, 1e-12), in place.
void to_unit_length(float* out, int64_t width);

bool is_finite_row(const float* row, int64_t width);

}  // namespace embedmux
