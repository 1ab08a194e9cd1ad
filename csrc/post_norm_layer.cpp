// embedmux::post_norm_layer on the CPU: checks, and the choice between the fused kernel and the ops one by one, which
// give the same bits.
#include "post_norm_layer.h"

#include "gemm_amx.h"
#include "gemm_int8.h"
#include "lora_arguments.h"
#include "norm_pairs.h"
#include "ops.h"
#include "tensors.h"

namespace embedmux {
namespace {

// The arguments of the op, named.
struct Arguments {
  const at::Tensor &x, &offsets, &arena, &segment_offsets, &segment_slots;
  const std::optional<at::Tensor>& segment_sets;
  at::TensorList weights, biases, adapters, packed, norms;
  int64_t heads;
  double scale, eps;
  std::string_view activation;

  int64_t hidden() const { return x.size(1); }
  int64_t inner() const { return weights[2].size(0); }
  std::vector<int64_t> slices(int linear) const {
    if (linear == 0) return {hidden(), hidden(), hidden()};
    return {linear == 2 ? inner() : hidden()};
  }
  std::string_view activation_of(int linear) const { return linear == 2 ? activation : "none"; }
};

int64_t num_sets(const Arguments& given) { return static_cast<int64_t>(given.weights.size()) / kLinears; }

int32_t set_of(const Arguments& given, int64_t segment) {
  return given.segment_sets.has_value() ? given.segment_sets->const_data_ptr<int32_t>()[segment] : 0;
}

void check_counts(const Arguments& given) {
  TORCH_CHECK(given.biases.size() == kLinears && given.adapters.size() == kLinears,
              "biases and adapters must have 4 tensors each, got ", given.biases.size(), " and ",
              given.adapters.size());
  TORCH_CHECK(!given.weights.empty() && given.weights.size() % kLinears == 0, "weights must have 4 tensors a set, got ",
              given.weights.size());
  TORCH_CHECK(given.packed.empty() || given.packed.size() == given.weights.size(), "packed must have ",
              given.weights.size(), " tensors as weights, or none, got ", given.packed.size());
  TORCH_CHECK(given.norms.size() == kLinears, "norms must have 4 tensors, got ", given.norms.size());
  TORCH_CHECK(given.activation == "gelu" || given.activation == "gelu_tanh" || given.activation == "relu" ||
                  given.activation == "silu",
              "activation must be gelu, gelu_tanh, silu or relu, got \"", given.activation, "\"");
  check_rank(given.x, "x", 2);
  check_rank(given.weights[2], "weights[2]", 2);
  check_offsets(given.segment_offsets, "segment_offsets", given.x.size(0));
  if (given.segment_sets.has_value()) {
    check_rank(*given.segment_sets, "segment_sets", 1);
    check_dtype(*given.segment_sets, "segment_sets", at::kInt);
    check_contiguous(*given.segment_sets, "segment_sets");
    check_size(*given.segment_sets, "segment_sets", 0, given.segment_offsets.numel() - 1);
    for (int64_t segment = 0; segment < given.segment_sets->numel(); ++segment) {
      TORCH_CHECK(set_of(given, segment) >= 0 && set_of(given, segment) < num_sets(given),
                  "segment_sets must be in 0..", num_sets(given) - 1, ", got ", set_of(given, segment), " at ",
                  segment);
    }
  }
  TORCH_CHECK(given.heads > 0 && given.hidden() % given.heads == 0, "num_heads must divide the ", given.hidden(),
              " columns of x, got ", given.heads);
}

at::Tensor one_by_one(const Arguments& given) {
  const int64_t rows = given.x.size(0), depth = given.hidden() / given.heads;
  // One linear, whose weight may change from one run of segments to the next.
  const auto linear = [&](int index, const at::Tensor& x) {
    const int64_t segments = given.segment_slots.numel();
    const int32_t* ends = given.segment_offsets.const_data_ptr<int32_t>();
    std::vector<at::Tensor> parts;
    for (int64_t first = 0, last; first < segments; first = last) {
      for (last = first + 1; last < segments && set_of(given, last) == set_of(given, first);) ++last;
      const int place = set_of(given, first) * kLinears + index;
      const std::optional<at::Tensor> packed =
          given.packed.empty() ? std::nullopt : std::optional<at::Tensor>(given.packed[place]);
      const at::Tensor offsets = given.segment_offsets.narrow(0, first, last - first + 1) - ends[first];
      parts.push_back(lora_matmul(x.narrow(0, ends[first], ends[last] - ends[first]), given.weights[place],
                                  given.biases[index], given.arena, given.adapters[index], offsets,
                                  given.segment_slots.narrow(0, first, last - first), given.slices(index),
                                  given.activation_of(index), packed, {}, {}));
    }
    return parts.size() == 1 ? parts[0] : at::cat(parts);
  };
  const at::Tensor heads = linear(0, given.x).view({rows, 3, given.heads, depth});
  const at::Tensor context = attention_cpu(heads.select(1, 0), heads.select(1, 1), heads.select(1, 2), given.offsets,
                                           false, -1, given.scale, {}, {}, {}, {}, {}, {});
  const at::Tensor states = add_layer_norm_cpu(linear(1, context.view({rows, given.hidden()})), given.x, given.norms[0],
                                               given.norms[1], given.eps);
  return add_layer_norm_cpu(linear(3, linear(2, states)), states, given.norms[2], given.norms[3], given.eps);
}

// The weight set of each sequence: that of the segment it lies in, which must be one.
std::vector<int32_t> sets_of(const Arguments& given) {
  const int32_t* offsets = given.offsets.const_data_ptr<int32_t>();
  const int32_t* ends = given.segment_offsets.const_data_ptr<int32_t>();
  std::vector<int32_t> sets(given.offsets.numel() - 1);
  if (!given.segment_sets.has_value()) return sets;
  int64_t segment = 0;
  for (size_t s = 0; s < sets.size(); ++s) {
    while (segment + 1 < given.segment_slots.numel() && ends[segment + 1] <= offsets[s]) ++segment;
    sets[s] = set_of(given, segment);
    for (int64_t other = segment; other < given.segment_slots.numel() && ends[other] < offsets[s + 1]; ++other) {
      TORCH_CHECK(ends[other] == ends[other + 1] || set_of(given, other) == sets[s],
                  "segment_sets must be one within a sequence, got ", sets[s], " and ", set_of(given, other), " in ",
                  s);
    }
  }
  return sets;
}

// A segment for each run of rows of one slot; base rows stand in none.
std::vector<LoraSegment> segments_of(const Arguments& given, const LoraCall& call, const LoraSlots& slots) {
  const int32_t* offsets = given.segment_offsets.const_data_ptr<int32_t>();
  std::vector<LoraSegment> segments;
  for (int64_t segment = 0; segment < given.segment_slots.numel(); ++segment) {
    const int64_t slot = given.segment_slots.const_data_ptr<int32_t>()[segment];
    if (slot < 0 || offsets[segment] == offsets[segment + 1]) continue;
    segments.push_back({offsets[segment], offsets[segment + 1], slots.slices.data() + slot * call.num_slices(), {}});
  }
  return segments;
}

std::vector<float> paired_vector(const at::Tensor& tensor, const char* name, int64_t size) {
  check_rank(tensor, name, 1);
  check_size(tensor, name, 0, size);
  check_dtype(tensor, name, at::kBFloat16);
  check_contiguous(tensor, name);
  std::vector<float> wide(size), paired(size);
  std::copy_n(tensor.const_data_ptr<at::BFloat16>(), size, wide.begin());
#ifdef EMBEDMUX_X86
  pair_up(wide.data(), size, paired.data());
#endif
  return paired;
}

at::Tensor fused(const Arguments& given) {
  const LoraRows x = read_rows(given.x);
  check_offsets(given.offsets, "offsets", x.rows);
  PostNormLayer layer{x.rows,
                      x.inner,
                      given.inner(),
                      given.heads,
                      given.scale,
                      given.eps,
                      given.offsets.const_data_ptr<int32_t>(),
                      given.offsets.numel() - 1,
                      {},
                      {},
                      sets_of(given),
                      {}};
  layer.packed.resize(num_sets(given));
  std::array<LoraSlots, kLinears> slots;
  std::array<std::vector<float>, kLinears> biases;
  for (int index = 0; index < kLinears; ++index) {
    const LoraRows rows{x.type, x.rows, index == 3 ? layer.inner : layer.hidden};
    const at::Tensor& weight = given.weights[index];
    const std::vector<int64_t> slices = given.slices(index);
    check_lora_tensors(rows, weight, given.biases[index], given.arena, given.adapters[index], given.segment_offsets,
                       given.segment_slots, slices, {}, {});
    LoraCall call = read_call(rows, weight, given.arena, slices, given.activation_of(index));
    slots[index] =
        read_slots(call, given.biases[index], given.arena, given.adapters[index], given.segment_slots, {}, {});
    call.segments = segments_of(given, call, slots[index]);
    biases[index] = base_bias(call, given.biases[index]);
    call.affine = {nullptr, biases[index].data()};
    for (int64_t set = 0; set < num_sets(given); ++set) {
      const int64_t place = set * kLinears + index;
      const at::Tensor& packed = layer.packed[set][index] =
          given.packed.empty() ? pack_weight_bf16_amx(given.weights[place]) : given.packed[place];
      if (packed.scalar_type() == at::kChar) {
        check_weight_int8(packed, call);
      } else {
        check_weight_bf16_amx(packed, call);
      }
    }
    layer.calls[index] = std::move(call);
  }
  for (int norm = 0; norm < 2; ++norm) {
    layer.norms[norm] = {paired_vector(given.norms[2 * norm], "norms", layer.hidden),
                         paired_vector(given.norms[2 * norm + 1], "norms", layer.hidden)};
  }
  const at::Tensor out = at::empty_like(given.x);
  fused_post_norm_layer(layer, given.x, out);
  return out;
}

at::Tensor post_norm_layer(const at::Tensor& x, const at::Tensor& offsets, int64_t num_heads, double scale, double eps,
                           std::string_view activation, at::TensorList weights, at::TensorList biases,
                           at::TensorList norms, const at::Tensor& arena, at::TensorList adapters,
                           const at::Tensor& segment_offsets, const at::Tensor& segment_slots, at::TensorList packed,
                           const std::optional<at::Tensor>& segment_sets) {
  const Arguments given{x,        offsets, arena, segment_offsets, segment_slots, segment_sets, weights,   biases,
                        adapters, packed,  norms, num_heads,       scale,         eps,          activation};
  check_counts(given);
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  return can_fuse_post_norm_layer(x, given.hidden(), given.inner(), num_heads) ? fused(given) : one_by_one(given);
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("post_norm_layer", embedmux::post_norm_layer); }

// oneDNN's packed weights, in float32, have a dispatch key of their own.
TORCH_LIBRARY_IMPL(embedmux, MkldnnCPU, library) { library.impl("post_norm_layer", embedmux::post_norm_layer); }
