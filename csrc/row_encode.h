// A float32 vector -> its codes. quantize_rows and pool_encode share it, so that their codes are the same.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tensors.h"

namespace embedmux {

// One encoding of vectors of `dimensions` values, checked when it is made; encode() may be called from any thread.
class RowEncoder {
 public:
  // ranges is looked at for int8 and uint8 only: [2, dimensions] float32, kept as long as the encoder.
  RowEncoder(const std::string& encoding, const std::optional<at::Tensor>& ranges, int64_t dimensions);

  at::ScalarType dtype() const { return dtype_; }
  int64_t width() const { return width_; }  // codes a vector
  int64_t row_bytes() const { return width_ * static_cast<int64_t>(c10::elementSize(dtype_)); }

  void encode(const float* row, void* codes) const;

 private:
  enum class Kind { copy, half, bfloat, scalar, bits };

  void take_ranges(const at::Tensor& ranges);

  Kind kind_;
  at::ScalarType dtype_;
  int64_t dimensions_, width_;
  at::Tensor ranges_;         // its first row: where the lowest bucket starts
  std::vector<float> steps_;  // a bucket's size in each dimension
};

}  // namespace embedmux
