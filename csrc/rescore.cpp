// embedmux::rescore on the CPU: the candidates of a query are gathered and scored as a block of rows.
#include <cmath>
#include <limits>

#include "similarity_search.h"

namespace embedmux {
namespace {

using similarity::kBlock;
using similarity::Search;

constexpr float kNone = -std::numeric_limits<float>::infinity();

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
  parallel_for(0, search.num_queries, grain, [&](int64_t begin, int64_t end) {
    Search::Worker worker(search);
    for (int64_t q = begin; q < end; ++q) {
      rescore_query(worker, search, q, ids + q * count, count, scores + q * count);
    }
  });
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("rescore", &embedmux::rescore_cpu); }
