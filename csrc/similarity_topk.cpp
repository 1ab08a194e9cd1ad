// embedmux::similarity_topk on the CPU. Threads take stretches of rows as they come; each keeps, for every query, a
// buffer of hits and a limit that a score must exceed. Which thread met a row does not matter: in the end the best of
// all buffers are chosen by score and id.
#include <atomic>
#include <cmath>
#include <limits>

#include "similarity_search.h"

namespace embedmux {
namespace {

using similarity::Finish;
using similarity::Hit;
using similarity::kBlock;
using similarity::kGroup;
using similarity::Search;
using similarity::Sums;

constexpr int64_t kMaxK = 4096;
constexpr int64_t kStretch = 4096;             // rows
constexpr int64_t kBytesOfBuffers = 64 << 20;  // of a thread; more queries are walked in several passes
constexpr float kEverything = std::numeric_limits<float>::quiet_NaN();  // as a limit: every score is a hit
constexpr float kNothing = std::numeric_limits<float>::infinity();

struct Found {
  float score;
  int64_t id;
};

bool is_nearer(const Found& one, const Found& other) {
  return one.score > other.score || (one.score == other.score && one.id < other.id);
}

// The best of one thread for some groups of queries. Rows come in rising order, so that a score equal to the limit,
// which k lower ids have reached, cannot get in.
class Selection {
 public:
  Selection(const Search& search, int64_t first_group, int64_t last_group, int64_t k)
      : search_(search),
        first_group_(first_group),
        k_(k),
        capacity_(2 * k + 16),
        sizes_((last_group - first_group) * search.group_size),
        limits_(similarity::round_up(sizes_.size(), kGroup), kNothing),
        found_(sizes_.size() * capacity_),
        hits_(kBlock * kGroup) {
    const int64_t used = std::min<int64_t>(sizes_.size(), search.num_queries - first_group * search.group_size);
    std::fill_n(limits_.begin(), used, kEverything);
  }

  void take(int64_t group, int64_t first_row, const Sums& sums) {
    const int64_t first = (group - first_group_) * search_.group_size;
    const int count = search_.finish().filter(sums, limits_.data() + first, hits_.data());
    for (int i = 0; i < count; ++i) add(first + hits_[i].column, {hits_[i].score, first_row + hits_[i].row});
  }

  // Appends the best of query `place` to `out`, in no order.
  void append(int64_t place, std::vector<Found>& out) const {
    const auto first = found_.begin() + place * capacity_;
    out.insert(out.end(), first, first + sizes_[place]);
  }

 private:
  void add(int64_t place, Found found) {
    if (std::isnan(found.score)) found.score = -std::numeric_limits<float>::infinity();
    if (found.score <= limits_[place]) return;  // the limit may have risen within the block
    Found* all = found_.data() + place * capacity_;
    all[sizes_[place]++] = found;
    if (sizes_[place] < capacity_) return;
    std::nth_element(all, all + k_ - 1, all + capacity_, is_nearer);
    sizes_[place] = k_;
    limits_[place] = all[k_ - 1].score;
  }

  const Search& search_;
  int64_t first_group_, k_, capacity_;
  std::vector<int64_t> sizes_;
  std::vector<float> limits_;
  std::vector<Found> found_;
  std::vector<Hit> hits_;
};

void finish(std::vector<Found>& all, int64_t k, float* scores, int64_t* ids) {
  std::nth_element(all.begin(), all.begin() + k - 1, all.end(), is_nearer);
  std::sort(all.begin(), all.begin() + k, is_nearer);
  for (int64_t i = 0; i < k; ++i) {
    scores[i] = all[i].score;
    ids[i] = all[i].id;
  }
}

void search_groups(const Search& search, int64_t first_group, int64_t last_group, int64_t k, float* scores,
                   int64_t* ids) {
  const int64_t threads = search.threads_for(search.num_rows);
  std::vector<Selection> selections;
  for (int64_t i = 0; i < threads; ++i) selections.emplace_back(search, first_group, last_group, k);
  const int64_t stretch =
      std::clamp(similarity::round_up(search.num_rows / threads, kBlock), int64_t{kBlock}, kStretch);
  std::atomic<int64_t> next{0};
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      Search::Worker worker(search);
      Selection& selection = selections[thread];
      for (int64_t row = next.fetch_add(stretch); row < search.num_rows; row = next.fetch_add(stretch)) {
        worker.walk(row, std::min(row + stretch, search.num_rows), first_group, last_group,
                    [&](int64_t group, int64_t first, const Sums& sums) { selection.take(group, first, sums); });
      }
    }
  });
  const int64_t first_query = first_group * search.group_size;
  const int64_t last_query = std::min(last_group * search.group_size, search.num_queries);
  parallel_for(first_query, last_query, 64, [&](int64_t begin, int64_t end) {
    std::vector<Found> all;
    for (int64_t q = begin; q < end; ++q) {
      all.clear();
      for (const Selection& selection : selections) selection.append(q - first_query, all);
      finish(all, k, scores + q * k, ids + q * k);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> similarity_topk_cpu(const at::Tensor& queries, const at::Tensor& rows,
                                                       c10::string_view kind, int64_t k,
                                                       const std::optional<at::Tensor>& query_scale,
                                                       const std::optional<at::Tensor>& query_offset) {
  const Search search(queries, rows, kind, query_scale, query_offset, false);
  TORCH_CHECK(k >= 1 && k <= kMaxK, "k must be from 1 to ", kMaxK, ", got ", k);
  TORCH_CHECK(k <= search.num_rows, "k must be at most the ", search.num_rows, " rows there are, got ", k);
  at::Tensor scores = at::empty({search.num_queries, k}, queries.options().dtype(at::kFloat));
  at::Tensor ids = at::empty({search.num_queries, k}, queries.options().dtype(at::kLong));
  const int64_t group_bytes = search.group_size * (2 * k + 16) * static_cast<int64_t>(sizeof(Found));
  const int64_t groups = std::max<int64_t>(1, kBytesOfBuffers / group_bytes);
  for (int64_t first = 0; first < search.num_groups(); first += groups) {
    search_groups(search, first, std::min(first + groups, search.num_groups()), k, scores.mutable_data_ptr<float>(),
                  ids.mutable_data_ptr<int64_t>());
  }
  return {scores, ids};
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("similarity_topk", &embedmux::similarity_topk_cpu); }
