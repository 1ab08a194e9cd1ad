// embedmux::pq_topk on the CPU: the head of the rows is scored exactly, the rest only where bytes leave a chance.
//
// Why no row is lost. With hi[m] the greatest entry of table m, a row's deficit is the sum of hi[m] - table[m][code],
// the sum of hi minus its score. A row that still belongs among the k best has a score of at least the k-th best so
// far, so a deficit of at most D = sum of hi - that score + E, E being more than float32 can err over M terms. The
// bytes are floor((hi[m] - entry) * unit) at most, so their sum is at most D * unit: what is above that is out. A sum
// that stops at 255 is above too, since unit is chosen such that D * unit is at most 254 and D only falls.
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>

#include "pq.h"
#include "tensors.h"

namespace embedmux::pq {
namespace {

constexpr int64_t kMostHits = 4096;
constexpr int64_t kHeadRows = 256;    // scored exactly, to begin with a threshold worth having
constexpr int64_t kChunkRows = 4096;  // between two looks at the thresholds; M = 48: 96 KiB
constexpr int kWorn = 192;            // a limit below this has lost a quarter of its resolution
constexpr int64_t kLookupsPerThread = int64_t{1} << 20;

struct Hit {
  float score;
  int64_t id;
};

bool better(const Hit& left, const Hit& right) {
  return left.score > right.score || (left.score == right.score && left.id < right.id);
}

// What one query knows while rows pass by in rising order.
class Query {
 public:
  Query(const float* table, int64_t columns, int64_t k) : table_(table), columns_(columns), k_(k) {
    double magnitude = 0.0;
    for (int64_t m = 0; m < 2 * columns; ++m) {
      const float* entries = table + m * kCentroids;
      double largest = 0.0;
      float high = entries[0];
      for (int64_t c = 0; c < kCentroids; ++c) {
        largest = std::max<double>(largest, std::fabs(entries[c]));
        high = std::max(high, entries[c]);
        finite_ = finite_ && std::isfinite(entries[c]);
      }
      highs_.push_back(high);
      sum_of_highs_ += high;
      magnitude += largest;
    }
    finite_ = finite_ && magnitude < std::numeric_limits<float>::max() / 2;
    error_ = magnitude * static_cast<double>(columns) * 2 * std::ldexp(1.0, -23);
    hits_.reserve(k);
  }

  // Rows in rising order, across calls too: an equal score never pushes out an earlier row.
  void offer(const Codes& codes, const int64_t* ids, int64_t count) {
    float scores[kExactRows];
    for (int64_t start = 0; start < count; start += kExactRows) {
      const int rows = static_cast<int>(std::min<int64_t>(kExactRows, count - start));
      exact_scores(codes, ids + start, rows, table_, scores);
      for (int i = 0; i < rows; ++i) add({scores[i], ids[start + i]});
    }
  }

  // Byte tables for the threshold of now; without a finite one every row passes.
  void refresh() {
    bytes_.resize(columns_ * 2 * kCentroids);
    const double reach = deficit();
    unit_ = finite_ && reach > 0 && std::isfinite(reach) ? 254.0 / reach : 0.0;
    if (!std::isfinite(unit_)) unit_ = 0.0;
    for (int64_t m = 0; m < 2 * columns_; ++m) {
      const double high = highs_[m];
      for (int64_t c = 0; c < kCentroids; ++c) {
        const double steps = (high - table_[m * kCentroids + c]) * unit_;
        bytes_[m * kCentroids + c] = steps < 255.0 ? static_cast<uint8_t>(static_cast<int>(steps)) : 255;
      }
    }
    if (unit_ == 0.0) std::fill(bytes_.begin(), bytes_.end(), 0);
  }

  uint8_t limit() const { return static_cast<uint8_t>(std::min(254.0, std::max(0.0, deficit() * unit_))); }
  bool is_worn() const { return unit_ > 0 && limit() < kWorn; }
  const uint8_t* bytes() const { return bytes_.data(); }
  std::vector<Hit>& hits() { return hits_; }

  std::vector<int64_t> pending;  // rows that passed and wait for their exact score

 private:
  double deficit() const { return sum_of_highs_ - hits_.front().score + error_; }

  // A heap, the worst of the best at its top.
  void add(const Hit& hit) {
    if (static_cast<int64_t>(hits_.size()) == k_) {
      if (!better(hit, hits_.front())) return;
      std::pop_heap(hits_.begin(), hits_.end(), better);
      hits_.pop_back();
    }
    hits_.push_back(hit);
    std::push_heap(hits_.begin(), hits_.end(), better);
  }

  const float* table_;
  int64_t columns_, k_;
  std::vector<float> highs_;
  std::vector<Hit> hits_;
  ByteTables bytes_;
  double sum_of_highs_ = 0.0, error_ = 0.0, unit_ = 0.0;
  bool finite_ = true;
};

struct Search {
  const float* tables;  // [Q, M, 16]
  Codes codes;
  const uint8_t* packed;  // may be null
  int64_t rows, k;
};

void offer_range(const Search& search, int64_t first, int64_t last, std::vector<Query>& queries) {
  int64_t ids[kBlockRows];
  for (int64_t start = first; start < last; start += kBlockRows) {
    const int64_t count = std::min(kBlockRows, last - start);
    std::iota(ids, ids + count, start);
    for (Query& query : queries) query.offer(search.codes, ids, count);
  }
}

// Rows [first, first + 64 * num_blocks) as blocks against up to eight queries.
void scan_chunk(const Search& search, int64_t first, int64_t last, const uint8_t* blocks, Query* queries,
                int64_t num_queries, std::vector<uint64_t>& masks) {
  const int64_t num_blocks = divide_up(last - first, kBlockRows);
  std::vector<const uint8_t*> tables;
  uint8_t limits[kScanQueries];
  for (int64_t i = 0; i < num_queries; ++i) {
    if (queries[i].is_worn()) queries[i].refresh();
    tables.push_back(queries[i].bytes());
    limits[i] = queries[i].limit();
  }
  masks.resize(num_queries * num_blocks);
  scan(blocks, num_blocks, search.codes.columns, tables, limits, masks.data());
  for (int64_t i = 0; i < num_queries; ++i) {
    std::vector<int64_t>& pending = queries[i].pending;
    for (int64_t block = 0; block < num_blocks; ++block) {
      for (uint64_t mask = masks[i * num_blocks + block]; mask != 0; mask &= mask - 1) {
        const int64_t id = first + block * kBlockRows + __builtin_ctzll(mask);
        if (id < last) pending.push_back(id);
      }
    }
    if (pending.size() < kExactRows) continue;
    queries[i].offer(search.codes, pending.data(), static_cast<int64_t>(pending.size()));
    pending.clear();
  }
}

// The k best (or all) of rows [first, last) for queries [first_query, last_query); first is a multiple of 64.
std::vector<Query> search_part(const Search& search, int64_t first_query, int64_t last_query, int64_t first,
                               int64_t last) {
  const int64_t columns = search.codes.columns;
  std::vector<Query> queries;
  for (int64_t i = first_query; i < last_query; ++i) {
    queries.emplace_back(search.tables + i * columns * 2 * kCentroids, columns, search.k);
  }
  const int64_t head = divide_up(std::max(kHeadRows, search.k), kBlockRows) * kBlockRows;
  int64_t row = isa() >= Isa::avx2 ? std::min(last, first + head) : last;
  offer_range(search, first, row, queries);
  if (row == last) return queries;
  for (Query& query : queries) query.refresh();
  std::unique_ptr<uint8_t[]> buffer(search.packed == nullptr ? new uint8_t[kChunkRows * columns] : nullptr);
  std::vector<uint64_t> masks;
  for (int64_t end = row; row < last; row = end) {
    // Thresholds rise quickly at first: the early chunks are short.
    end = std::min(last, row + std::min(kChunkRows, 2 * (row - first)));
    if (buffer != nullptr) pack_rows(search.codes, row, end - row, buffer.get());
    const uint8_t* blocks = buffer != nullptr ? buffer.get() : search.packed + row * columns;
    for (int64_t i = 0; i < last_query - first_query; i += kScanQueries) {
      const int64_t count = std::min<int64_t>(kScanQueries, last_query - first_query - i);
      scan_chunk(search, row, end, blocks, queries.data() + i, count, masks);
    }
  }
  for (Query& query : queries) {
    query.offer(search.codes, query.pending.data(), static_cast<int64_t>(query.pending.size()));
  }
  return queries;
}

void check_arguments(const at::Tensor& tables, const at::Tensor& codes, int64_t k,
                     const std::optional<at::Tensor>& packed) {
  check_rank(codes, "codes", 2);
  check_dtype(codes, "codes", at::kByte);
  check_rank(tables, "tables", 3);
  check_dtype(tables, "tables", at::kFloat);
  TORCH_CHECK(codes.size(1) > 0, "codes must have at least one column, got shape ", codes.sizes());
  check_size(tables, "tables", 1, 2 * codes.size(1));
  check_size(tables, "tables", 2, kCentroids);
  const int64_t most = std::min(codes.size(0), kMostHits);
  TORCH_CHECK(k >= 1 && k <= most, "k must be in 1..", most, ", at most the rows of codes and ", kMostHits, ", got ",
              k);
  if (!packed.has_value()) return;
  check_rank(*packed, "packed", 3);
  check_dtype(*packed, "packed", at::kByte);
  check_contiguous(*packed, "packed");
  check_size(*packed, "packed", 0, divide_up(codes.size(0), kBlockRows));
  check_size(*packed, "packed", 1, codes.size(1));
  check_size(*packed, "packed", 2, kBlockRows);
}

std::tuple<at::Tensor, at::Tensor> pq_topk_cpu(const at::Tensor& tables, const at::Tensor& codes, int64_t k,
                                               const std::optional<at::Tensor>& packed) {
  check_arguments(tables, codes, k, packed);
  const at::Tensor plain_tables = tables.contiguous(), plain_codes = codes.contiguous();
  const int64_t num_queries = tables.size(0), rows = codes.size(0);
  const Search search{plain_tables.const_data_ptr<float>(),
                      {plain_codes.const_data_ptr<uint8_t>(), codes.size(1)},
                      packed.has_value() ? packed->const_data_ptr<uint8_t>() : nullptr,
                      rows,
                      k};
  at::Tensor scores = at::empty({num_queries, k}, tables.options());
  at::Tensor ids = at::empty({num_queries, k}, tables.options().dtype(at::kLong));
  if (num_queries == 0) return {scores, ids};
  // A task is a group of queries; rows are cut only when groups are too few. Threads take the next task as they get
  // free, which evens out slow cores; neither the cut nor the order changes a result.
  const int64_t work = divide_up(num_queries * rows * codes.size(1) * 2, kLookupsPerThread);
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), work);
  const int64_t groups = divide_up(num_queries, kScanQueries);
  const int64_t row_parts = groups >= threads ? 1 : std::min(divide_up(threads, groups), divide_up(rows, kChunkRows));
  const int64_t part_rows = divide_up(divide_up(rows, row_parts), kBlockRows) * kBlockRows;
  std::vector<std::vector<Query>> found(groups * row_parts);
  std::atomic<int64_t> next{0};
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t task = next++; task < groups * row_parts; task = next++) {
        const int64_t first_query = task / row_parts * kScanQueries;
        const int64_t first = std::min(rows, task % row_parts * part_rows);
        found[task] = search_part(search, first_query, std::min(num_queries, first_query + kScanQueries), first,
                                  std::min(rows, first + part_rows));
      }
    }
  });
  for (int64_t i = 0; i < num_queries; ++i) {
    std::vector<Hit> hits;
    for (int64_t part = 0; part < row_parts; ++part) {
      const std::vector<Hit>& some = found[i / kScanQueries * row_parts + part][i % kScanQueries].hits();
      hits.insert(hits.end(), some.begin(), some.end());
    }
    std::sort(hits.begin(), hits.end(), better);
    for (int64_t place = 0; place < k; ++place) {
      scores.mutable_data_ptr<float>()[i * k + place] = hits[place].score;
      ids.mutable_data_ptr<int64_t>()[i * k + place] = hits[place].id;
    }
  }
  return {scores, ids};
}

}  // namespace
}  // namespace embedmux::pq

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("pq_topk", &embedmux::pq::pq_topk_cpu); }
