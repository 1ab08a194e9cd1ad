// embedmux::take_rows on the CPU.
#include "take_rows.h"

#include <cstring>

namespace embedmux {
namespace {

constexpr int64_t kBytesPerThread = 1 << 16;
constexpr int64_t kAhead = 8;  // rows called from memory before they are copied: they lie anywhere in the table

at::Tensor take_rows(const at::Tensor& table, const at::Tensor& rows) {
  check_taken(table, "table", rows, "rows");
  const int64_t count = rows.size(0), row_bytes = table.size(1) * table.element_size();
  const int64_t* numbers = rows.const_data_ptr<int64_t>();
  const at::Tensor out = at::empty({count, table.size(1)}, table.options());
  const char* source = static_cast<const char*>(table.const_data_ptr());
  char* target = static_cast<char*>(out.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kBytesPerThread / std::max<int64_t>(1, row_bytes));
  parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) {
        const char* ahead = source + numbers[i + kAhead] * row_bytes;
        for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(ahead + byte);
      }
      std::memcpy(target + i * row_bytes, source + numbers[i] * row_bytes, row_bytes);
    }
  });
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("take_rows", &embedmux::take_rows); }
