// Layers of a post-norm encoder, as the op's arguments are after checking.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <vector>

#include "lora_segments.h"

namespace embedmux {

constexpr int kLinears = 4;  // query-key-value, attention output, up, down

// Float vectors [hidden], in pairs (norm_pairs.h).
struct LayerNormWeights {
  std::vector<float> weight, bias;
};

struct PostNormLayer {
  std::array<LoraCall, kLinears> calls;                  // with segments and the base's bias
  std::vector<std::array<at::Tensor, kLinears>> packed;  // by weight set
  std::array<LayerNormWeights, 2> norms;                 // behind attention, behind the feed-forward
};

struct PostNormLayers {
  int64_t rows, hidden, inner, heads;
  double scale, eps;
  const int32_t* offsets;  // [sequences + 1]
  int64_t sequences;
  std::vector<int32_t> sets;  // [sequences]: the weights of each
  std::vector<PostNormLayer> layers;
};

// Whether the fused kernel knows these shapes, on this machine.
bool can_fuse_post_norm_layers(const at::Tensor& x, int64_t hidden, int64_t inner, int64_t heads);

// out [rows, hidden] from x [rows, hidden], both bfloat16 and contiguous; the packed weights are checked.
void fused_post_norm_layers(const PostNormLayers& given, const at::Tensor& x, const at::Tensor& out);

}  // namespace embedmux
