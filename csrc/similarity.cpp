// embedmux::similarity on the CPU.
#include "similarity_search.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace embedmux {
namespace {

using similarity::kBlock;
using similarity::Search;
using similarity::Sums;

// Fresh memory of this size comes page by page from the kernel; larger pages take a third of the time.
void ask_for_large_pages(const at::Tensor& out) {
#if defined(__linux__)
  constexpr uintptr_t kLargePage = 2 << 20;
  const auto start = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
  const uintptr_t first = (start + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t last = (start + out.nbytes()) / kLargePage * kLargePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

at::Tensor similarity_cpu(const at::Tensor& queries, const at::Tensor& rows, c10::string_view kind,
                          const std::optional<at::Tensor>& query_scale, const std::optional<at::Tensor>& query_offset) {
  const Search search(queries, rows, kind, query_scale, query_offset, false);
  at::Tensor out = at::empty({search.num_queries, search.num_rows}, queries.options().dtype(at::kFloat));
  if (out.numel() == 0) return out;
  ask_for_large_pages(out);
  auto* scores = out.mutable_data_ptr<float>();
  const int64_t blocks = (search.num_rows + kBlock - 1) / kBlock;
  const int64_t threads = search.threads_for(search.num_rows);
  parallel_for(0, blocks, (blocks + threads - 1) / threads, [&](int64_t begin, int64_t end) {
    Search::Worker worker(search);
    worker.walk(begin * kBlock, std::min(end * kBlock, search.num_rows), 0, search.num_groups(),
                [&](int64_t group, int64_t row, const Sums& sums) {
                  float* place = scores + group * search.group_size * search.num_rows + row;
                  search.finish().emit(sums, search.queries_in(group), place, search.num_rows);
                });
#ifdef EMBEDMUX_X86
    _mm_sfence();  // `emit` may write past the caches
#endif
  });
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("similarity", &embedmux::similarity_cpu); }
