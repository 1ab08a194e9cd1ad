// embedmux::attention on the CPU: checks, the list of work, and the threads that draw from it.
#include <atomic>
#include <optional>
#include <vector>

#include "attention_problem.h"
#include "ops.h"
#include "simd.h"
#include "tensors.h"

namespace embedmux {
namespace {

using attention::Chunk;
using attention::Kernels;
using attention::kRows;
using attention::Piece;
using attention::Problem;
using attention::View;

constexpr int kChunkRows = 256;  // query rows (of all heads of a group) that share one packing of keys
constexpr int kPiecesPerThread = 16;
constexpr int64_t kScoresPerThread = 60000;  // less than this is done before a second thread has woken up

// The optional arguments: all four or none.
struct Prefix {
  at::Tensor k, v, offsets, of;

  Prefix(const std::optional<at::Tensor>& k, const std::optional<at::Tensor>& v,
         const std::optional<at::Tensor>& offsets, const std::optional<at::Tensor>& of) {
    TORCH_CHECK(
        k.has_value() == v.has_value() && k.has_value() == offsets.has_value() && k.has_value() == of.has_value(),
        "prefix_k, prefix_v, prefix_offsets and prefix_of must be given together or not at all");
    if (!k.has_value()) return;
    this->k = *k, this->v = *v, this->offsets = *offsets, this->of = *of;
  }

  bool given() const { return k.defined(); }
};

void check_heads(const at::Tensor& tensor, const char* name, const at::Tensor& q, int64_t heads) {
  check_rank(tensor, name, 3);
  check_dtype(tensor, name, q.scalar_type());
  check_size(tensor, name, 1, heads);
  check_size(tensor, name, 2, q.size(2));
  TORCH_CHECK(tensor.stride(2) == 1 || tensor.numel() == 0, name,
              " must be contiguous in its last dimension, got strides ", tensor.strides());
}

void check_prefix(const Prefix& prefix, const at::Tensor& q, const at::Tensor& k, int64_t sequences) {
  check_heads(prefix.k, "prefix_k", q, k.size(1));
  check_heads(prefix.v, "prefix_v", q, k.size(1));
  check_size(prefix.v, "prefix_v", 0, prefix.k.size(0));
  check_offsets(prefix.offsets, "prefix_offsets", prefix.k.size(0));
  check_rank(prefix.of, "prefix_of", 1);
  check_dtype(prefix.of, "prefix_of", at::kInt);
  check_contiguous(prefix.of, "prefix_of");
  check_size(prefix.of, "prefix_of", 0, sequences);
  const int64_t prefixes = prefix.offsets.numel() - 1;
  const int32_t* of = prefix.of.const_data_ptr<int32_t>();
  for (int64_t s = 0; s < sequences; ++s) {
    TORCH_CHECK(of[s] >= -1 && of[s] < prefixes, "prefix_of must be -1 (none) or one of the ", prefixes,
                " prefixes, got ", of[s], " at ", s);
  }
}

void check_num_keys(const at::Tensor& num_keys, const at::Tensor& offsets, int64_t window) {
  const int64_t sequences = offsets.numel() - 1;
  check_rank(num_keys, "num_keys", 1);
  check_dtype(num_keys, "num_keys", at::kInt);
  check_contiguous(num_keys, "num_keys");
  check_size(num_keys, "num_keys", 0, sequences);
  const int32_t* ends = offsets.const_data_ptr<int32_t>();
  const int32_t* keys = num_keys.const_data_ptr<int32_t>();
  for (int64_t s = 0; s < sequences; ++s) {
    const int32_t length = ends[s + 1] - ends[s];
    TORCH_CHECK(keys[s] >= std::min(length, 1) && keys[s] <= length, "num_keys must be from 1 to a sequence's ", length,
                " tokens, got ", keys[s], " at ", s);
    TORCH_CHECK(window < 0 || length - keys[s] <= window, "num_keys must be at most ", window,
                " (window) below a sequence's ", length, " tokens, got ", keys[s], " at ", s);
  }
}

void check_asked(const at::Tensor& asked, const at::Tensor& offsets) {
  check_rank(asked, "asked", 1);
  check_dtype(asked, "asked", at::kLong);
  check_contiguous(asked, "asked");
  check_size(asked, "asked", 0, offsets.numel() - 1);
  const int32_t* ends = offsets.const_data_ptr<int32_t>();
  const int64_t* rows = asked.const_data_ptr<int64_t>();
  for (int64_t s = 0; s < asked.numel(); ++s) {
    TORCH_CHECK(ends[s] == ends[s + 1] || (rows[s] >= ends[s] && rows[s] < ends[s + 1]),
                "asked must be a row of sequence ", s, ", ", ends[s], " .. ", ends[s + 1] - 1, ", got ", rows[s]);
  }
}

void check_arguments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& offsets,
                     int64_t window, double scale) {
  check_rank(q, "q", 3);
  TORCH_CHECK(q.scalar_type() == at::kFloat || q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16,
              "q must be float32, float16 or bfloat16, got ", q.scalar_type());
  const int64_t depth = q.size(2);
  TORCH_CHECK(depth % 8 == 0 && depth >= 16 && depth <= 256,
              "q must have a head size that is a multiple of 8 from 16 to 256, got ", depth);
  check_heads(q, "q", q, q.size(1));
  check_rank(k, "k", 3);
  check_heads(k, "k", q, k.size(1));
  check_heads(v, "v", q, k.size(1));
  check_size(k, "k", 0, q.size(0));
  check_size(v, "v", 0, q.size(0));
  TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, "q must have a multiple of the ", k.size(1),
              " heads of k and v, got ", q.size(1));
  check_offsets(offsets, "offsets", q.size(0));
  TORCH_CHECK(window >= -1, "window must be -1 (none) or a half-window of at least 0, got ", window);
  TORCH_CHECK(scale > 0 && scale < 1e6, "scale must be above 0 and below 1e6, got ", scale);
}

const Kernels& choose(at::ScalarType type, const Kernels& float32, const Kernels& float16, const Kernels& bfloat16) {
  return type == at::kFloat ? float32 : type == at::kHalf ? float16 : bfloat16;
}

const Kernels& choose_kernels(at::ScalarType type) {
  using namespace attention;
  switch (isa()) {
#ifdef EMBEDMUX_X86
    case Isa::amx:
      return choose(type, float32_avx512, float16_avx512, bfloat16_amx);
    case Isa::avx512_bf16:
      return choose(type, float32_avx512, float16_avx512, bfloat16_avx512_bf16);
    case Isa::avx512:
      return choose(type, float32_avx512, float16_avx512, bfloat16_avx512);
    case Isa::avx2:
      return choose(type, float32_avx2, float16_avx2, bfloat16_avx2);
#endif
    default:
      return choose(type, float32_baseline, float16_baseline, bfloat16_baseline);
  }
}

View view_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())), tensor.element_size(), tensor.stride(0),
          tensor.stride(1)};
}

// Fills `chunks`; returns the number of scores of one query head.
int64_t list_work(const at::Tensor& offsets, const Prefix& prefix, const std::optional<at::Tensor>& num_keys,
                  const std::optional<at::Tensor>& asked, int chunk_rows, std::vector<Chunk>& chunks) {
  const int32_t* ends = offsets.const_data_ptr<int32_t>();
  int64_t scores = 0;
  for (int64_t s = 0; s + 1 < offsets.numel(); ++s) {
    Chunk chunk{ends[s], 0, 0, ends[s + 1] - ends[s], 0, 0, 0};
    if (prefix.given() && prefix.of.const_data_ptr<int32_t>()[s] >= 0) {
      const int32_t* edges = prefix.offsets.const_data_ptr<int32_t>() + prefix.of.const_data_ptr<int32_t>()[s];
      chunk.prefix_begin = edges[0];
      chunk.prefix = edges[1] - edges[0];
      chunk.own -= chunk.prefix;
      chunk.length += chunk.prefix;
    }
    chunk.keys = num_keys.has_value() ? chunk.prefix + num_keys->const_data_ptr<int32_t>()[s] : chunk.length;
    int first = chunk.prefix, end = chunk.length;
    if (asked.has_value() && first < end) {
      first = static_cast<int>(asked->const_data_ptr<int64_t>()[s] - chunk.own);
      end = first + 1;
    }
    scores += static_cast<int64_t>(end - first) * chunk.keys;
    for (chunk.first = first; chunk.first < end; chunk.first += chunk_rows) {
      chunk.rows = std::min(chunk_rows, end - chunk.first);
      chunks.push_back(chunk);
    }
  }
  return scores;
}

}  // namespace

at::Tensor attention_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& offsets,
                         bool causal, int64_t window, double scale, const std::optional<at::Tensor>& prefix_k,
                         const std::optional<at::Tensor>& prefix_v, const std::optional<at::Tensor>& prefix_offsets,
                         const std::optional<at::Tensor>& prefix_of, const std::optional<at::Tensor>& num_keys,
                         const std::optional<at::Tensor>& asked) {
  check_arguments(q, k, v, offsets, window, scale);
  const Prefix prefix(prefix_k, prefix_v, prefix_offsets, prefix_of);
  if (prefix.given()) check_prefix(prefix, q, k, offsets.numel() - 1);
  if (num_keys.has_value()) check_num_keys(*num_keys, offsets, window);
  if (asked.has_value()) check_asked(*asked, offsets);
  at::Tensor out = at::empty(q.sizes(), q.options());
  if (out.numel() == 0) return out;
  constexpr double kLog2E = 1.4426950408889634;
  const int heads = static_cast<int>(k.size(1));
  const Problem problem{view_of(q),
                        view_of(k),
                        view_of(v),
                        view_of(out),
                        view_of(prefix.k),
                        view_of(prefix.v),
                        heads,
                        static_cast<int>(q.size(1)) / heads,
                        static_cast<int>(q.size(2)),
                        causal,
                        static_cast<int>(std::min<int64_t>(window, 1 << 30)),
                        static_cast<float>(scale * kLog2E)};
  const Kernels& kernels = choose_kernels(q.scalar_type());

  const int chunk_rows = std::max(1, kChunkRows / kRows / problem.groups) * kRows;
  std::vector<Chunk> chunks;
  const int64_t scores = list_work(offsets, prefix, num_keys, asked, chunk_rows, chunks) * q.size(1);

  // Pieces differ in size by orders of magnitude, so the threads take them one by one; but neighbouring heads lie side
  // by side in memory, so a piece has as many of them as leave enough pieces.
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), 1 + scores / kScoresPerThread);
  const int64_t heads_each = std::clamp<int64_t>(chunks.size() * heads / (threads * kPiecesPerThread), 1, heads);
  const int64_t pieces_each = (heads + heads_each - 1) / heads_each;
  const int64_t pieces = chunks.size() * pieces_each;
  std::atomic<int64_t> next{0};
  const auto piece_at = [&](int64_t index) {
    const int64_t first = index % pieces_each * heads_each;
    return Piece{chunks[index / pieces_each], static_cast<int>(first),
                 static_cast<int>(std::min<int64_t>(first + heads_each, heads))};
  };
  const auto work = [&](int64_t, int64_t) {
    kernels.enter();
    int64_t index = next++;
    while (index < pieces) {
      const int64_t after = next++;
      const Piece upcoming = piece_at(std::min(after, pieces - 1));
      kernels.attend(problem, kernels, piece_at(index), after < pieces ? &upcoming : nullptr);
      index = after;
    }
    kernels.leave();
  };
  parallel_for(0, threads, 1, work);
  return out;
}

}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("attention", &embedmux::attention_cpu); }
