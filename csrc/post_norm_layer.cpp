// embedmux::post_norm_layer on the CPU: checks, and the choice between the fused kernel and the ops one by one, which
// give the same bits.
#include "post_norm_layer.h"

#include "gemm_amx.h"
#include "gemm_int8.h"
#include "lora_arguments.h"
#include "ops.h"
#include "tensors.h"

namespace embedmux {
namespace {

// The arguments of the op, named.
struct Arguments {
  const at::Tensor &x, &offsets, &arena, &segment_offsets, &segment_slots;
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

void check_counts(const Arguments& given) {
  TORCH_CHECK(given.weights.size() == kLinears && given.biases.size() == kLinears && given.adapters.size() == kLinears,
              "weights, biases and adapters must have 4 tensors each, got ", given.weights.size(), ", ",
              given.biases.size(), " and ", given.adapters.size());
  TORCH_CHECK(given.packed.empty() || given.packed.size() == kLinears, "packed must have 4 tensors or none, got ",
              given.packed.size());
  TORCH_CHECK(given.norms.size() == kLinears, "norms must have 4 tensors, got ", given.norms.size());
  TORCH_CHECK(given.activation == "gelu" || given.activation == "gelu_tanh" || given.activation == "relu" ||
                  given.activation == "silu",
              "activation must be gelu, gelu_tanh, silu or relu, got \"", given.activation, "\"");
  check_rank(given.x, "x", 2);
  check_rank(given.weights[2], "weights[2]", 2);
  TORCH_CHECK(given.heads > 0 && given.hidden() % given.heads == 0, "num_heads must divide the ", given.hidden(),
              " columns of x, got ", given.heads);
}

at::Tensor one_by_one(const Arguments& given) {
  const int64_t rows = given.x.size(0), depth = given.hidden() / given.heads;
  const auto linear = [&](int index, const at::Tensor& x) {
    const std::optional<at::Tensor> packed =
        given.packed.empty() ? std::nullopt : std::optional<at::Tensor>(given.packed[index]);
    return lora_matmul(x, given.weights[index], given.biases[index], given.arena, given.adapters[index],
                       given.segment_offsets, given.segment_slots, given.slices(index), given.activation_of(index),
                       packed, {}, {});
  };
  const at::Tensor heads = linear(0, given.x).view({rows, 3, given.heads, depth});
  const at::Tensor context = attention_cpu(heads.select(1, 0), heads.select(1, 1), heads.select(1, 2), given.offsets,
                                           false, -1, given.scale, {}, {}, {}, {}, {}, {});
  const at::Tensor states = add_layer_norm_cpu(linear(1, context.view({rows, given.hidden()})), given.x, given.norms[0],
                                               given.norms[1], given.eps);
  return add_layer_norm_cpu(linear(3, linear(2, states)), states, given.norms[2], given.norms[3], given.eps);
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

std::vector<float> wide_vector(const at::Tensor& tensor, const char* name, int64_t size) {
  check_rank(tensor, name, 1);
  check_size(tensor, name, 0, size);
  const at::Tensor wide = tensor.to(at::kFloat).contiguous();
  return {wide.const_data_ptr<float>(), wide.const_data_ptr<float>() + size};
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
                      {}};
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
    layer.packed[index] = given.packed.empty() ? pack_weight_bf16_amx(weight) : given.packed[index];
    if (layer.packed[index].scalar_type() == at::kChar) {
      check_weight_int8(layer.packed[index], call);
    } else {
      check_weight_bf16_amx(layer.packed[index], call);
    }
    layer.calls[index] = std::move(call);
  }
  for (int norm = 0; norm < 2; ++norm) {
    layer.norms[norm] = {wide_vector(given.norms[2 * norm], "norms", layer.hidden),
                         wide_vector(given.norms[2 * norm + 1], "norms", layer.hidden)};
  }
  const at::Tensor out = at::empty_like(given.x);
  fused_post_norm_layer(layer, given.x, out);
  return out;
}

at::Tensor post_norm_layer(const at::Tensor& x, const at::Tensor& offsets, int64_t num_heads, double scale, double eps,
                           std::string_view activation, at::TensorList weights, at::TensorList biases,
                           at::TensorList norms, const at::Tensor& arena, at::TensorList adapters,
                           const at::Tensor& segment_offsets, const at::Tensor& segment_slots, at::TensorList packed) {
  const Arguments given{x,        offsets, arena, segment_offsets, segment_slots, weights, biases,
                        adapters, packed,  norms, num_heads,       scale,         eps,     activation};
  check_counts(given);
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  return can_fuse_post_norm_layer(x, given.hidden(), given.inner(), num_heads) ? fused(given) : one_by_one(given);
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("post_norm_layer", embedmux::post_norm_layer); }

// oneDNN's packed weights, in float32, have a dispatch key of their own.
TORCH_LIBRARY_IMPL(embedmux, MkldnnCPU, library) { library.impl("post_norm_layer", embedmux::post_norm_layer); }
