// A sequence's rows -> their final norm -> one float32 vector; no normalised row is written anywhere.
#pragma once

#include "row_pool.h"

namespace embedmux {

// LayerNorm or, with is_rms, RMSNorm over `width` values; weight (else 1) and bias (else 0) may be null.
struct FinalNorm {
  bool is_rms;
  const float* weight;
  const float* bias;
  float eps;
  int64_t width;

  // Floats a thread needs while it pools.
  int64_t buffer_size() const { return (width + 63) / 64 * 64; }
};

// As pool_rows with the norm applied to each row first; `buffer` holds norm.buffer_size() floats.
template <typename T>
void pool_normed_rows(const SequenceRows<T>& rows, const FinalNorm& norm, int64_t width, bool normalize, float* buffer,
                      float* out);

}  // namespace embedmux
