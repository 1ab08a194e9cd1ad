// embedmux::rope on the CPU: token by token, head by head, one source for every instruction set. A head's values stay
// in float32 from the load to the one rounding; its squares are summed in an order that D and R alone fix.
#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "elements.h"
#include "lora_vector.h"
#include "simd.h"
#include "tensors.h"

namespace embedmux {
namespace {

constexpr int64_t kElementsPerThread = 16384;  // below this the work is done before a second thread has woken up

template <typename T>
struct Heads {
  const T* source;
  T* target;            // [T, count, size]
  const float* weight;  // may be null: no norm
  int64_t count, token_stride, head_stride;
};

template <typename T>
struct Rope {
  Heads<T> q, k;
  const int64_t* positions;
  const float* cosines;  // [P, half]
  const float* sines;
  int64_t size, half;  // D and R / 2
  float eps;
};

template <int W, size_t... L>
EMBEDMUX_INLINE float sum(const typename Lanes<W>::Float& lanes, std::index_sequence<L...>) {
  if constexpr (W == 2) return lanes[0] + lanes[1];
  if constexpr (W > 2) {
    const typename Lanes<W / 2>::Float halves =
        __builtin_shufflevector(lanes, lanes, L...) + __builtin_shufflevector(lanes, lanes, (L + W / 2)...);
    return sum<W / 2>(halves, std::make_index_sequence<W / 4>());
  }
}

// 1 / √(mean of the squares + eps). Two sums grow side by side and then lane by lane.
template <int W, typename T>
EMBEDMUX_INLINE float norm_scale(const T* source, int64_t size, float eps) {
  typename Lanes<W>::Float sums[2] = {};
  int64_t j = 0;
  for (; j + 2 * W <= size; j += 2 * W) {
    const auto first = load<W>(source + j), second = load<W>(source + j + W);
    sums[0] += first * first;
    sums[1] += second * second;
  }
  for (; j < size; j += W) {
    const auto value = j + W <= size ? load<W>(source + j) : load_part<W>(source + j, size - j);
    sums[0] += value * value;
  }
  const float squares = sum<W>(sums[0] + sums[1], std::make_index_sequence<W / 2>());
  return 1.0f / std::sqrt(squares / static_cast<float>(size) + eps);
}

// `count` values, W of them unless they are the last of their part.
template <int W, bool Norm, typename T>
EMBEDMUX_INLINE typename Lanes<W>::Float take(const T* source, const float* weight, float scale, int64_t count) {
  const auto value = count == W ? load<W>(source) : load_part<W>(source, count);
  if constexpr (!Norm) return value;
  return value * scale * (count == W ? load<W>(weight) : load_part<W>(weight, count));
}

template <int W, bool Norm, typename T>
EMBEDMUX_INLINE void rotate(const T* source, T* target, const float* weight, float scale, const float* cosines,
                            const float* sines, int64_t half, int64_t count) {
  const auto first = take<W, Norm>(source, weight, scale, count);
  const auto second = take<W, Norm>(source + half, weight + half, scale, count);
  const auto cosine = count == W ? load<W>(cosines) : load_part<W>(cosines, count);
  const auto sine = count == W ? load<W>(sines) : load_part<W>(sines, count);
  store<W>(target, first * cosine - second * sine, count);
  store<W>(target + half, second * cosine + first * sine, count);
}

template <int W, bool Norm, typename T>
EMBEDMUX_INLINE void turn_head(const Rope<T>& call, const T* source, T* target, const float* weight,
                               const float* cosines, const float* sines) {
  const int64_t half = call.half, size = call.size;
  const float scale = Norm ? norm_scale<W>(source, size, call.eps) : 1.0f;
  int64_t j = 0;
  for (; j + W <= half; j += W) {
    rotate<W, Norm>(source + j, target + j, weight + j, scale, cosines + j, sines + j, half, W);
  }
  if (j < half) {
    rotate<W, Norm>(source + j, target + j, weight + j, scale, cosines + j, sines + j, half, half - j);
  }
  for (j = 2 * half; j < size; j += W) {
    const int64_t count = std::min<int64_t>(W, size - j);
    store<W>(target + j, take<W, Norm>(source + j, weight + j, scale, count), count);
  }
}

template <int W, typename T>
EMBEDMUX_INLINE void turn_heads(const Rope<T>& call, const Heads<T>& heads, int64_t token) {
  const float* cosines = call.cosines + call.positions[token] * call.half;
  const float* sines = call.sines + call.positions[token] * call.half;
  const T* source = heads.source + token * heads.token_stride;
  T* target = heads.target + token * heads.count * call.size;
  for (int64_t head = 0; head < heads.count; ++head) {
    if (heads.weight == nullptr) {
      turn_head<W, false>(call, source, target, nullptr, cosines, sines);
    } else {
      turn_head<W, true>(call, source, target, heads.weight, cosines, sines);
    }
    source += heads.head_stride;
    target += call.size;
  }
}

template <int W, typename T>
EMBEDMUX_INLINE void turn_tokens(const Rope<T>& call, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    turn_heads<W>(call, call.q, token);
    turn_heads<W>(call, call.k, token);
  }
}

#ifdef EMBEDMUX_X86
template <typename T>
EMBEDMUX_AVX512 void turn_avx512(const Rope<T>& call, int64_t begin, int64_t end) {
  turn_tokens<16>(call, begin, end);
}

template <typename T>
EMBEDMUX_AVX2 void turn_avx2(const Rope<T>& call, int64_t begin, int64_t end) {
  turn_tokens<8>(call, begin, end);
}
#endif

template <typename T>
void turn_baseline(const Rope<T>& call, int64_t begin, int64_t end) {
  turn_tokens<4>(call, begin, end);
}

// The arguments after their checks; weights are float32 or undefined.
struct Arguments {
  at::Tensor q, k, positions, cosines, sines, q_weight, k_weight, q_out, k_out;
  float eps;
};

template <typename T>
Heads<T> heads_of(const at::Tensor& source, const at::Tensor& weight, const at::Tensor& target) {
  return {static_cast<const T*>(source.const_data_ptr()),
          static_cast<T*>(target.mutable_data_ptr()),
          weight.defined() ? weight.const_data_ptr<float>() : nullptr,
          source.size(1),
          source.stride(0),
          source.stride(1)};
}

template <typename T, Isa Level>
constexpr auto kernel_for() {
#ifdef EMBEDMUX_X86
  if constexpr (Level == Isa::avx512) return turn_avx512<T>;
  if constexpr (Level == Isa::avx2) return turn_avx2<T>;
#endif
  if constexpr (Level == Isa::baseline) return turn_baseline<T>;
}

template <typename T, Isa Level>
void run(const Arguments& arguments) {
  const at::Tensor& q = arguments.q;
  const Rope<T> call{heads_of<T>(q, arguments.q_weight, arguments.q_out),
                     heads_of<T>(arguments.k, arguments.k_weight, arguments.k_out),
                     arguments.positions.const_data_ptr<int64_t>(),
                     arguments.cosines.const_data_ptr<float>(),
                     arguments.sines.const_data_ptr<float>(),
                     q.size(2),
                     arguments.cosines.size(1),
                     arguments.eps};
  constexpr auto kernel = kernel_for<T, Level>();
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / ((q.size(1) + arguments.k.size(1)) * q.size(2)));
  parallel_for(0, q.size(0), grain, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

void check_heads(const at::Tensor& tensor, const char* name, const at::Tensor& q) {
  check_rank(tensor, name, 3);
  check_dtype(tensor, name, q.scalar_type());
  check_size(tensor, name, 0, q.size(0));
  check_size(tensor, name, 2, q.size(2));
  TORCH_CHECK(tensor.size(1) > 0, name, " must have at least one head, got shape ", tensor.sizes());
}

at::Tensor check_weight(const std::optional<at::Tensor>& weight, const char* name, const at::Tensor& q) {
  if (!weight.has_value()) return {};
  check_rank(*weight, name, 1);
  check_size(*weight, name, 0, q.size(2));
  TORCH_CHECK(weight->scalar_type() == at::kFloat || weight->scalar_type() == q.scalar_type(), name,
              " must be float32 or ", q.scalar_type(), " like q, got ", weight->scalar_type());
  return weight->to(at::kFloat).contiguous();
}

void check_angles(const at::Tensor& tensor, const char* name, const at::Tensor& cosines, const at::Tensor& q) {
  check_rank(tensor, name, 2);
  check_dtype(tensor, name, at::kFloat);
  TORCH_CHECK(tensor.size(0) > 0 && tensor.size(1) > 0 && 2 * tensor.size(1) <= q.size(2), name,
              " must be [P, R / 2] with P at least 1 and R from 2 to D = ", q.size(2), ", got shape ", tensor.sizes());
  TORCH_CHECK(tensor.sizes() == cosines.sizes(), name, " must be ", cosines.sizes(), " as cos, got shape ",
              tensor.sizes());
}

at::Tensor with_plain_heads(const at::Tensor& tensor) {
  return tensor.stride(2) == 1 || tensor.size(2) == 1 ? tensor : tensor.contiguous();
}

std::tuple<at::Tensor, at::Tensor> rope_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& positions,
                                            const at::Tensor& cosines, const at::Tensor& sines,
                                            const std::optional<at::Tensor>& q_weight,
                                            const std::optional<at::Tensor>& k_weight, double eps) {
  check_rank(q, "q", 3);
  TORCH_CHECK(q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf,
              "q must be float32, bfloat16 or float16, got ", q.scalar_type());
  check_heads(q, "q", q);
  check_heads(k, "k", q);
  check_rank(positions, "positions", 1);
  check_dtype(positions, "positions", at::kLong);
  check_size(positions, "positions", 0, q.size(0));
  check_angles(cosines, "cos", cosines, q);
  check_angles(sines, "sin", cosines, q);
  TORCH_CHECK(eps >= 0, "eps must be at least 0, got ", eps);
  const Arguments arguments{with_plain_heads(q),
                            with_plain_heads(k),
                            positions.contiguous(),
                            cosines.contiguous(),
                            sines.contiguous(),
                            check_weight(q_weight, "q_weight", q),
                            check_weight(k_weight, "k_weight", q),
                            at::empty(q.sizes(), q.options()),
                            at::empty(k.sizes(), k.options()),
                            static_cast<float>(eps)};
  const int64_t* places = arguments.positions.const_data_ptr<int64_t>();
  for (int64_t token = 0; token < q.size(0); ++token) {
    TORCH_CHECK(places[token] >= 0 && places[token] < cosines.size(0), "positions must be from 0 to ",
                cosines.size(0) - 1, ", the last row of cos, got ", places[token], " for token ", token);
  }
  choose_kernel(q.scalar_type(), [&]<typename T, Isa Level>() { run<T, Level>(arguments); });
  return {arguments.q_out, arguments.k_out};
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("rope", &embedmux::rope_cpu); }
