// embedmux::pool_encode on the CPU: final norm, pooling and encoding of one sequence after the other. What stands
// between them, one row and one vector, stays in the nearest cache.
#include <string>
#include <tuple>
#include <vector>

#include "pooling.h"
#include "row_encode.h"
#include "row_norm.h"

namespace embedmux {
namespace {

struct Work {
  const int32_t* offsets;
  const int32_t* sequences;  // null: every sequence in its order
  Pooling pooling;
  int64_t dimensions;
  bool normalize;
  const FinalNorm* norm;  // may be null
  const RowEncoder& encoder;
};

template <typename T>
void encode_all(const PackedRows<T>& rows, const Work& work, const at::Tensor& codes, const at::Tensor& finite) {
  auto* target = static_cast<uint8_t*>(codes.mutable_data_ptr());
  bool* flags = finite.mutable_data_ptr<bool>();
  const int64_t bytes = work.encoder.row_bytes();
  parallel_for(0, codes.size(0), kSequencesPerThread, [&](int64_t begin, int64_t end) {
    std::vector<float> vector(work.dimensions);
    std::vector<float> buffer(work.norm == nullptr ? 0 : work.norm->buffer_size());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = work.sequences == nullptr ? i : work.sequences[i];
      const SequenceRows<T> own = rows.sequence(work.offsets[s], work.offsets[s + 1], work.pooling);
      if (work.norm == nullptr) {
        pool_rows(own, work.dimensions, work.normalize, vector.data());
      } else {
        pool_normed_rows(own, *work.norm, work.dimensions, work.normalize, buffer.data(), vector.data());
      }
      flags[i] = is_finite_row(vector.data(), work.dimensions);
      work.encoder.encode(vector.data(), target + i * bytes);
    }
  });
}

at::Tensor checked_residual(const std::optional<at::Tensor>& residual, const at::Tensor& hidden) {
  if (!residual.has_value()) return {};
  check_rank(*residual, "residual", 2);
  check_dtype(*residual, "residual", hidden.scalar_type());
  check_size(*residual, "residual", 0, hidden.size(0));
  check_size(*residual, "residual", 1, hidden.size(1));
  return with_plain_rows(*residual);
}

// The vector in float32, or an undefined tensor.
at::Tensor checked_vector(const std::optional<at::Tensor>& vector, const char* name, const at::Tensor& hidden,
                          bool is_allowed, const std::string& norm) {
  if (!vector.has_value()) return {};
  TORCH_CHECK(is_allowed, name, " must be None with norm ", norm);
  check_rank(*vector, name, 1);
  check_size(*vector, name, 0, hidden.size(1));
  TORCH_CHECK(vector->scalar_type() == at::kFloat || vector->scalar_type() == hidden.scalar_type(), name,
              " must be float32 or ", hidden.scalar_type(), " like hidden, got ", vector->scalar_type());
  return vector->to(at::kFloat).contiguous();
}

// The sequences to encode of `count` that there are; null without a choice.
const int32_t* checked_sequences(const std::optional<at::Tensor>& sequences, int64_t count) {
  if (!sequences.has_value()) return nullptr;
  check_rank(*sequences, "sequences", 1);
  check_dtype(*sequences, "sequences", at::kInt);
  check_contiguous(*sequences, "sequences");
  const int32_t* chosen = sequences->const_data_ptr<int32_t>();
  for (int64_t i = 0; i < sequences->numel(); ++i) {
    TORCH_CHECK(chosen[i] >= 0 && chosen[i] < count, "sequences must be from 0 to ", count - 1, ", got ", chosen[i],
                " at ", i);
  }
  return chosen;
}

std::tuple<at::Tensor, at::Tensor> pool_encode_cpu(const at::Tensor& hidden, const std::optional<at::Tensor>& residual,
                                                   const std::optional<at::Tensor>& norm_weight,
                                                   const std::optional<at::Tensor>& norm_bias, double eps,
                                                   c10::string_view norm_name, const at::Tensor& offsets,
                                                   const std::optional<at::Tensor>& sequences, c10::string_view pooling,
                                                   int64_t dimensions, bool normalize, c10::string_view encoding,
                                                   const std::optional<at::Tensor>& ranges) {
  const std::string norm(norm_name);
  check_hidden(hidden, dimensions);
  check_rising_offsets(offsets, hidden.size(0));
  TORCH_CHECK(norm == "none" || norm == "layer" || norm == "rms", "norm must be none, layer or rms, got '", norm, "'");
  TORCH_CHECK(eps >= 0, "eps must be at least 0, got ", eps);
  const at::Tensor weight = checked_vector(norm_weight, "norm_weight", hidden, norm != "none", norm);
  const at::Tensor bias = checked_vector(norm_bias, "norm_bias", hidden, norm == "layer", norm);
  const FinalNorm final_norm{norm == "rms", weight.defined() ? weight.const_data_ptr<float>() : nullptr,
                             bias.defined() ? bias.const_data_ptr<float>() : nullptr, static_cast<float>(eps),
                             hidden.size(1)};
  const RowEncoder encoder(std::string(encoding), ranges, dimensions);
  const at::Tensor rows = with_plain_rows(hidden);
  const at::Tensor added = checked_residual(residual, hidden);
  const int64_t all = offsets.numel() - 1;
  const int64_t count = sequences.has_value() ? sequences->numel() : all;
  const Work work{offsets.const_data_ptr<int32_t>(),
                  checked_sequences(sequences, all),
                  parse_pooling(std::string(pooling)),
                  dimensions,
                  normalize,
                  norm == "none" ? nullptr : &final_norm,
                  encoder};
  at::Tensor codes = at::empty({count, encoder.width()}, hidden.options().dtype(encoder.dtype()));
  at::Tensor finite = at::empty({count}, hidden.options().dtype(at::kBool));
  with_element_type(hidden.scalar_type(),
                    [&](auto element) { encode_all(PackedRows<decltype(element)>(rows, added), work, codes, finite); });
  return {codes, finite};
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("pool_encode", &embedmux::pool_encode_cpu); }
