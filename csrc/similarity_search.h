// A call of similarity, similarity_topk or rescore: checked arguments, prepared queries, and the walk over the rows.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "similarity.h"
#include "tensors.h"

namespace embedmux::similarity {

// Zeros, from the start of a cell.
class Cells {
 public:
  explicit Cells(int64_t bytes) : memory_(bytes + kCell) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    start_ = memory_.data() + (kCell - address % kCell) % kCell;
  }
  Cells(Cells&&) = default;
  Cells& operator=(Cells&&) = default;  // the memory moves and keeps its address
  template <typename T = uint8_t>
  T* data() const {
    return reinterpret_cast<T*>(start_);
  }

 private:
  std::vector<uint8_t> memory_;
  uint8_t* start_;
};

class Search {
 public:
  // Groups of kGroup queries, or of one, as rescore needs them.
  Search(const at::Tensor& queries, const at::Tensor& rows, c10::string_view kind,
         const std::optional<at::Tensor>& query_scale, const std::optional<at::Tensor>& query_offset, bool one_by_one);

  int64_t num_queries, num_rows;
  int group_size;

  int64_t num_groups() const { return (num_queries + group_size - 1) / group_size; }
  int queries_in(int64_t group) const {
    return static_cast<int>(std::min<int64_t>(group_size, num_queries - group * group_size));
  }
  const Finish& finish() const { return *finish_; }

  // How many threads the work is worth.
  int64_t threads_for(int64_t pairs) const;

  // What one thread needs to score; make it, use it and drop it on that thread.
  class Worker {
   public:
    explicit Worker(const Search& search);
    ~Worker();
    Worker(const Worker&) = delete;

    // consume(group, first_row, sums) for all blocks of rows [begin, end) and groups [first, last); the rows of a
    // group come in rising order.
    template <typename Consume>
    void walk(int64_t begin, int64_t end, int64_t first_group, int64_t last_group, Consume consume) {
      for (int64_t row = begin; row < end; row += span_) {
        const int64_t count = std::min(span_, end - row);
        const bool direct = is_direct(count);
        if (!direct) decode(row, count);
        for (int64_t group = first_group; group < last_group; ++group) {
          for (int64_t at = 0; at < count; at += kBlock) {
            const int in_block = static_cast<int>(std::min<int64_t>(kBlock, count - at));
            const uint8_t* rows = direct ? search_.rows_ + (row + at) * search_.row_stride_ : decoded_at(at);
            const int64_t stride = direct ? search_.row_stride_ : search_.query_bytes_;
            const bool has_next =
                search_.fetches_ahead_ && direct && group == first_group && row + at + span_ + kBlock <= end;
            consume(group, row + at,
                    score(group, {rows, stride, in_block, has_next ? rows + span_ * stride : nullptr}));
          }
        }
      }
    }

    // Sums of the rows of the given numbers, at most kBlock.
    Sums gather(int64_t group, const int64_t* ids, int count);

   private:
    bool is_direct(int64_t count) const;
    void decode(int64_t first, int64_t count);
    void decode_row(int64_t row, int64_t place);
    uint8_t* decoded_at(int64_t place) const { return decoded_.data() + place * search_.query_bytes_; }
    Sums score(int64_t group, const Block& block);

    const Search& search_;
    int64_t span_;  // rows that all groups meet before the next ones come
    Cells decoded_;
    Cells sums_;
  };

 private:
  const Kernel* kernel_;
  const Finish* finish_;
  at::Tensor query_tensor_, row_tensor_;  // in the form that is read
  const uint8_t* rows_;
  int64_t row_stride_, row_bytes_, width_, query_bytes_;
  bool fetches_ahead_;  // where the processor alone does not keep up with the rows (measured)
  Cells prepared_, bias_, scale_, offset_;

  friend class Worker;
  int columns_of(int64_t group) const {
    return group_size == 1 ? 1 : static_cast<int>(round_up(queries_in(group), kLanes));
  }
};

}  // namespace embedmux::similarity
