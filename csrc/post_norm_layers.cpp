// embedmux::post_norm_layers on the CPU: checks, and the choice between the fused kernel and the ops one by one, which
// give the same bits.
#include "post_norm_layers.h"

#include <c10/core/InferenceMode.h>

#include <atomic>
#include <cstring>

#include "gemm_amx.h"
#include "gemm_int8.h"
#include "lora_arguments.h"
#include "norm_pairs.h"
#include "ops.h"
#include "tensors.h"
#include "threads.h"

namespace embedmux {
namespace {

constexpr int64_t kLeastChunkRows = 64, kChunksPerThread = 4;

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
  int64_t num_layers() const { return static_cast<int64_t>(biases.size()) / kLinears; }
  int64_t num_sets() const { return static_cast<int64_t>(weights.size() / biases.size()); }
  // Where a set's weight of a layer stands.
  int64_t place(int64_t layer, int64_t set, int linear) const { return (layer * num_sets() + set) * kLinears + linear; }
  int32_t set_of(int64_t segment) const {
    return segment_sets.has_value() ? segment_sets->const_data_ptr<int32_t>()[segment] : 0;
  }
  std::vector<int64_t> slices(int linear) const {
    if (linear == 0) return {hidden(), hidden(), hidden()};
    return {linear == 2 ? inner() : hidden()};
  }
  std::string_view activation_of(int linear) const { return linear == 2 ? activation : "none"; }
};

void check_counts(const Arguments& given) {
  const size_t count = given.biases.size();
  TORCH_CHECK(count > 0 && count % kLinears == 0, "biases must have 4 tensors a layer, got ", count);
  TORCH_CHECK(given.adapters.size() == count && given.norms.size() == count, "adapters and norms must have ", count,
              " tensors as biases, got ", given.adapters.size(), " and ", given.norms.size());
  TORCH_CHECK(!given.weights.empty() && given.weights.size() % count == 0, "weights must have ", count,
              " tensors as biases, or a multiple, got ", given.weights.size());
  TORCH_CHECK(given.packed.empty() || given.packed.size() == given.weights.size(), "packed must have ",
              given.weights.size(), " tensors as weights, or none, got ", given.packed.size());
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
      TORCH_CHECK(given.set_of(segment) >= 0 && given.set_of(segment) < given.num_sets(), "segment_sets must be in 0..",
                  given.num_sets() - 1, ", got ", given.set_of(segment), " at ", segment);
    }
  }
  TORCH_CHECK(given.heads > 0 && given.hidden() % given.heads == 0, "num_heads must divide the ", given.hidden(),
              " columns of x, got ", given.heads);
}

// One linear of a layer, whose weight may change from one run of segments to the next.
at::Tensor run_linear(const Arguments& given, int64_t layer, int index, const at::Tensor& x) {
  const int64_t segments = given.segment_slots.numel(), own = layer * kLinears + index;
  const int32_t* ends = given.segment_offsets.const_data_ptr<int32_t>();
  std::vector<at::Tensor> parts;
  for (int64_t first = 0, last; first < segments; first = last) {
    for (last = first + 1; last < segments && given.set_of(last) == given.set_of(first);) ++last;
    const int64_t place = given.place(layer, given.set_of(first), index);
    const std::optional<at::Tensor> packed =
        given.packed.empty() ? std::nullopt : std::optional<at::Tensor>(given.packed[place]);
    const at::Tensor offsets = given.segment_offsets.narrow(0, first, last - first + 1) - ends[first];
    parts.push_back(lora_matmul(x.narrow(0, ends[first], ends[last] - ends[first]), given.weights[place],
                                given.biases[own], given.arena, given.adapters[own], offsets,
                                given.segment_slots.narrow(0, first, last - first), given.slices(index),
                                given.activation_of(index), packed, {}, {}));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

at::Tensor one_by_one(const Arguments& given) {
  const int64_t rows = given.x.size(0), depth = given.hidden() / given.heads;
  at::Tensor x = given.x;
  for (int64_t layer = 0; layer < given.num_layers(); ++layer) {
    const at::TensorList norms = given.norms.slice(layer * kLinears, kLinears);
    const at::Tensor heads = run_linear(given, layer, 0, x).view({rows, 3, given.heads, depth});
    const at::Tensor context = attention_cpu(heads.select(1, 0), heads.select(1, 1), heads.select(1, 2), given.offsets,
                                             false, -1, given.scale, {}, {}, {}, {}, {}, {});
    const at::Tensor summed = run_linear(given, layer, 1, context.view({rows, given.hidden()}));
    const at::Tensor states = add_layer_norm_cpu(summed, x, norms[0], norms[1], given.eps);
    const at::Tensor fed = run_linear(given, layer, 3, run_linear(given, layer, 2, states));
    x = add_layer_norm_cpu(fed, states, norms[2], norms[3], given.eps);
  }
  return x;
}

// Chunks of whole sequences, each through all layers on one thread: nobody waits for a thread that the system has set
// aside, as steps that all threads share do once other processes want the processors too. Few rows are shared step by
// step. The same bits, since a row's do not depend on its neighbours.
at::Tensor by_chunks(const Arguments& given) {
  const int64_t rows = given.x.size(0), sequences = given.offsets.numel() - 1, threads = at::get_num_threads();
  const int64_t count = std::min(rows / kLeastChunkRows, kChunksPerThread * threads);
  // Products of other types are oneDNN's, which has threads of its own.
  if (threads < 2 || count < threads || given.x.element_size() != 2) return one_by_one(given);
  check_offsets(given.offsets, "offsets", rows);
  const int32_t* offsets = given.offsets.const_data_ptr<int32_t>();
  std::vector<int64_t> cuts{0};
  for (int64_t s = 1; s <= sequences; ++s) {
    if (s == sequences || offsets[s] * count >= rows * static_cast<int64_t>(cuts.size())) cuts.push_back(s);
  }
  at::Tensor out = at::empty_like(given.x);
  std::atomic<size_t> next{0};
  const bool infers = c10::InferenceMode::is_enabled();
  run_team(threads, [&](const Team&) {
    const c10::InferenceMode mode(infers);
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    for (size_t index = next++; index + 1 < cuts.size(); index = next++) {
      const int64_t first = offsets[cuts[index]], last = offsets[cuts[index + 1]];
      const at::Tensor x = given.x.narrow(0, first, last - first);
      const at::Tensor own = given.offsets.narrow(0, cuts[index], cuts[index + 1] - cuts[index] + 1) - first;
      const at::Tensor segments = (given.segment_offsets - first).clamp(0, last - first);
      const at::Tensor found = one_by_one({x, own, given.arena, segments, given.segment_slots, given.segment_sets,
                                           given.weights, given.biases, given.adapters, given.packed, given.norms,
                                           given.heads, given.scale, given.eps, given.activation});
      const size_t width = x.size(1) * x.element_size();
      std::memcpy(static_cast<char*>(out.mutable_data_ptr()) + first * width, found.const_data_ptr(),
                  (last - first) * width);
    }
  });
  return out;
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
    sets[s] = given.set_of(segment);
    for (int64_t other = segment; other < given.segment_slots.numel() && ends[other] < offsets[s + 1]; ++other) {
      TORCH_CHECK(ends[other] == ends[other + 1] || given.set_of(other) == sets[s],
                  "segment_sets must be one within a sequence, got ", sets[s], " and ", given.set_of(other), " in ", s);
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

// What the calls of a layer point to.
struct Kept {
  std::array<LoraSlots, kLinears> slots;
  std::array<std::vector<float>, kLinears> biases;
};

PostNormLayer read_layer(const Arguments& given, const LoraRows& x, int64_t index, Kept& kept) {
  PostNormLayer layer;
  layer.packed.resize(given.num_sets());
  for (int linear = 0; linear < kLinears; ++linear) {
    const int64_t own = index * kLinears + linear;
    const LoraRows rows{x.type, x.rows, linear == 3 ? given.inner() : x.inner};
    const std::vector<int64_t> slices = given.slices(linear);
    LoraCall& call = layer.calls[linear];
    for (int64_t set = 0; set < given.num_sets(); ++set) {
      const at::Tensor& weight = given.weights[given.place(index, set, linear)];
      check_lora_tensors(rows, weight, given.biases[own], given.arena, given.adapters[own], given.segment_offsets,
                         given.segment_slots, slices, {}, {});
      if (set == 0) call = read_call(rows, weight, given.arena, slices, given.activation_of(linear));
      const at::Tensor& packed = layer.packed[set][linear] =
          given.packed.empty() ? pack_weight_bf16_amx(weight) : given.packed[given.place(index, set, linear)];
      if (packed.scalar_type() == at::kChar) {
        check_weight_int8(packed, call);
      } else {
        check_weight_bf16_amx(packed, call);
      }
    }
    kept.slots[linear] =
        read_slots(call, given.biases[own], given.arena, given.adapters[own], given.segment_slots, {}, {});
    call.segments = segments_of(given, call, kept.slots[linear]);
    kept.biases[linear] = base_bias(call, given.biases[own]);
    call.affine = {nullptr, kept.biases[linear].data()};
  }
  const at::TensorList norms = given.norms.slice(index * kLinears, kLinears);
  for (int norm = 0; norm < 2; ++norm) {
    layer.norms[norm] = {paired_vector(norms[2 * norm], "norms", x.inner),
                         paired_vector(norms[2 * norm + 1], "norms", x.inner)};
  }
  return layer;
}

at::Tensor fused(const Arguments& given) {
  const LoraRows x = read_rows(given.x);
  check_offsets(given.offsets, "offsets", x.rows);
  std::vector<Kept> kept(given.num_layers());
  PostNormLayers found{x.rows,
                       x.inner,
                       given.inner(),
                       given.heads,
                       given.scale,
                       given.eps,
                       given.offsets.const_data_ptr<int32_t>(),
                       given.offsets.numel() - 1,
                       sets_of(given),
                       {}};
  for (int64_t layer = 0; layer < given.num_layers(); ++layer) {
    found.layers.push_back(read_layer(given, x, layer, kept[layer]));
  }
  const at::Tensor out = at::empty_like(given.x);
  fused_post_norm_layers(found, given.x, out);
  return out;
}

at::Tensor post_norm_layers(const at::Tensor& x, const at::Tensor& offsets, int64_t num_heads, double scale, double eps,
                            std::string_view activation, at::TensorList weights, at::TensorList biases,
                            at::TensorList norms, const at::Tensor& arena, at::TensorList adapters,
                            const at::Tensor& segment_offsets, const at::Tensor& segment_slots, at::TensorList packed,
                            const std::optional<at::Tensor>& segment_sets) {
  const Arguments given{x,        offsets, arena, segment_offsets, segment_slots, segment_sets, weights,   biases,
                        adapters, packed,  norms, num_heads,       scale,         eps,          activation};
  check_counts(given);
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  return can_fuse_post_norm_layers(x, given.hidden(), given.inner(), num_heads) ? fused(given) : by_chunks(given);
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("post_norm_layers", embedmux::post_norm_layers); }

// oneDNN's packed weights, in float32, have a dispatch key of their own.
TORCH_LIBRARY_IMPL(embedmux, MkldnnCPU, library) { library.impl("post_norm_layers", embedmux::post_norm_layers); }
