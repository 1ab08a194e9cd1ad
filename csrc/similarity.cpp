// embedmux::similarity and embedmux::rescore on the CPU.
#include <cmath>
#include <limits>

#include "similarity_search.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace embedmux {
namespace {

using similarity::kBlock;
using similarity::Search;
using similarity::Sums;

constexpr float kNone = -std::numeric_limits<float>::infinity();

// Fresh memory of this size comes page by page from the kernel; 512 times larger pages take a fifth of the time.
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
  at::parallel_for(0, blocks, (blocks + threads - 1) / threads, [&](int64_t begin, int64_t end) {
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

// Missing candidates are scored as row 0 and overwritten: what is left is one path.
void rescore_query(Search::Worker& worker, const Search& search, int64_t query, const int64_t* candidates,
                   int64_t count, float* scores) {
  for (int64_t first = 0; first < count; first += kBlock) {
    const int in_block = static_cast<int>(std::min<int64_t>(kBlock, count - first));
    int64_t ids[kBlock];
    for (int i = 0; i < in_block; ++i) ids[i] = std::max<int64_t>(candidates[first + i], 0);
    search.finish().emit(worker.gather(query, ids, in_block), 1, scores + first, 0);
    for (int i = 0; i < in_block; ++i) {
      float& score = scores[first + i];
      if (candidates[first + i] < 0 || std::isnan(score)) score = kNone;
    }
  }
}

at::Tensor rescore_cpu(const at::Tensor& queries, const at::Tensor& rows, const at::Tensor& candidates,
                       c10::string_view kind, const std::optional<at::Tensor>& query_scale,
                       const std::optional<at::Tensor>& query_offset) {
  const Search search(queries, rows, kind, query_scale, query_offset, true);
  check_dtype(candidates, "candidates", at::kLong);
  check_rank(candidates, "candidates", 2);
  check_size(candidates, "candidates", 0, search.num_queries);
  const at::Tensor plain = candidates.contiguous();
  const int64_t* ids = plain.const_data_ptr<int64_t>();
  const int64_t count = plain.size(1);
  for (int64_t i = 0; i < plain.numel(); ++i) {
    TORCH_CHECK(ids[i] >= -1 && ids[i] < search.num_rows, "candidates must be from -1 to ", search.num_rows - 1,
                ", got ", ids[i], " at [", i / count, ", ", i % count, "]");
  }
  at::Tensor out = at::empty(plain.sizes(), queries.options().dtype(at::kFloat));
  if (out.numel() == 0) return out;
  if (search.num_rows == 0) return out.fill_(kNone);
  auto* scores = out.mutable_data_ptr<float>();
  const int64_t threads = search.threads_for(count);
  const int64_t grain = (search.num_queries + threads - 1) / threads;
  at::parallel_for(0, search.num_queries, grain, [&](int64_t begin, int64_t end) {
    Search::Worker worker(search);
    for (int64_t q = begin; q < end; ++q) {
      rescore_query(worker, search, q, ids + q * count, count, scores + q * count);
    }
  });
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) {
  library.impl("similarity", &embedmux::similarity_cpu);
  library.impl("rescore", &embedmux::rescore_cpu);
}
