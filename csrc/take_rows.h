// What take_rows and embed_norm share.
#pragma once

#include "tensors.h"

namespace embedmux {

// A table, contiguous, and the numbers of rows that are taken from it, int64: all must be there.
inline void check_taken(const at::Tensor& table, const char* table_name, const at::Tensor& rows,
                        const char* rows_name) {
  check_rank(table, table_name, 2);
  check_contiguous(table, table_name);
  check_rank(rows, rows_name, 1);
  check_dtype(rows, rows_name, at::kLong);
  check_contiguous(rows, rows_name);
  const int64_t* numbers = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    TORCH_CHECK(numbers[i] >= 0 && numbers[i] < table.size(0), rows_name, " must be in 0..", table.size(0) - 1,
                ", got ", numbers[i], " at ", i);
  }
}

}  // namespace embedmux
