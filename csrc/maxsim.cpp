// embedmux::maxsim on the CPU: checks, the queries as panels, and a walk over the documents. A document's tokens are
// read where they lie if the instruction set multiplies their dtype; else they are rewritten, a few at a time.
#include "maxsim.h"

#include <cstring>
#include <limits>
#include <vector>

#include "math_portable.h"
#include "tensors.h"

namespace embedmux::maxsim {
namespace {

constexpr int64_t kRunTokens = 256;        // read for all panels in turn; at D = 128 in bfloat16 64 KiB
constexpr int64_t kCopyTokens = 64;        // rewritten at a time
constexpr int64_t kMostDimensions = 1024;  // in int8: 1024 products of 128 by 128 are the last that float32 counts
constexpr int64_t kProductsPerThread = int64_t{1} << 21;

struct Rows {
  const char* data;
  at::ScalarType dtype;
  int64_t width, row_bytes;

  const char* row(int64_t index) const { return data + index * row_bytes; }
};

#ifdef EMBEDMUX_X86
EMBEDMUX_AVX2 void widen_halves_avx2(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; i += 8) {
    uint16_t values[8] = {};
    float wide[8];
    const int64_t some = std::min<int64_t>(8, count - i);
    std::memcpy(values, source + i, some * sizeof(uint16_t));
    _mm256_storeu_ps(wide, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values))));
    std::memcpy(target + i, wide, some * sizeof(float));
  }
}
#endif

void widen_halves(const uint16_t* source, int64_t count, float* target) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx2) return widen_halves_avx2(source, count, target);
#endif
  for (int64_t i = 0; i < count; ++i) target[i] = c10::detail::fp16_ieee_to_fp32_value(source[i]);
}

// One token as cells, zero behind the last dimension.
void write_cells(const Rows& rows, int64_t index, Form form, int64_t num_cells, uint32_t* cells) {
  const char* row = rows.row(index);
  std::memset(cells, 0, num_cells * sizeof(uint32_t));
  if (form != Form::floats || rows.dtype == at::kFloat) {
    std::memcpy(cells, row, rows.width * c10::elementSize(rows.dtype));
    return;
  }
  std::vector<float> wide(rows.width);
  if (rows.dtype == at::kHalf) {
    widen_halves(reinterpret_cast<const uint16_t*>(row), rows.width, wide.data());
  } else if (rows.dtype == at::kBFloat16) {
    for (int64_t i = 0; i < rows.width; ++i) wide[i] = widen(reinterpret_cast<const uint16_t*>(row)[i]);
  } else {
    for (int64_t i = 0; i < rows.width; ++i) wide[i] = reinterpret_cast<const int8_t*>(row)[i];
  }
  std::memcpy(cells, wide.data(), rows.width * sizeof(float));
}

const Kernels& choose(at::ScalarType dtype) {
#ifdef EMBEDMUX_X86
  const Isa level = isa();
  if (level >= Isa::avx512_bf16 && dtype == at::kBFloat16) return level == Isa::amx ? pairs_amx : pairs_avx512;
  if (level >= Isa::avx512_bf16 && dtype == at::kChar) return level == Isa::amx ? quads_amx : quads_avx512;
  if (level >= Isa::avx512) return floats_avx512;
  if (level >= Isa::avx2) return floats_avx2;
#endif
  return floats_baseline;
}

int64_t bytes_of_cell(Form form, at::ScalarType dtype) {
  return form == Form::floats ? static_cast<int64_t>(c10::elementSize(dtype)) : 4;
}

class Scorer {
 public:
  Scorer(const Rows& queries, int64_t num_tokens, const Rows& documents)
      : kernels_(choose(documents.dtype)),
        documents_(documents),
        num_panels_(divide_up(num_tokens, kLanes)),
        cells_(round_up(divide_up(documents.width * static_cast<int64_t>(c10::elementSize(documents.dtype)),
                                  bytes_of_cell(kernels_.form, documents.dtype)),
                        kernels_.cell_step)),
        panels_(num_panels_ * (cells_ + 1) * kLanes) {
    std::vector<uint32_t> token(cells_);
    for (int64_t i = 0; i < num_tokens; ++i) {
      write_cells(queries, i, kernels_.form, cells_, token.data());
      uint32_t* lane = panels_.data() + i / kLanes * (cells_ + 1) * kLanes + i % kLanes;
      for (int64_t cell = 0; cell < cells_; ++cell) lane[cell * kLanes] = token[cell];
      if (kernels_.form != Form::quads) continue;
      int32_t sum = 0;
      for (int64_t j = 0; j < queries.width; ++j) sum += reinterpret_cast<const int8_t*>(queries.row(i))[j];
      lane[cells_ * kLanes] = static_cast<uint32_t>(-128 * sum);
    }
  }

  const Kernels& kernels() const { return kernels_; }
  int64_t num_panels() const { return num_panels_; }

  // The greatest dot product of every query token with tokens [first, last) of the documents, at least one.
  void raise(int64_t first, int64_t last, std::vector<uint32_t>& buffer, float* best) const {
    const int64_t step = kernels_.token_step, count = last - first;
    const bool in_place = cells_ * 4 == documents_.row_bytes && count >= step &&
                          (kernels_.form != Form::floats || documents_.dtype == at::kFloat);
    const int64_t run = in_place ? kRunTokens : kCopyTokens;
    Product product{nullptr, cells_, 0, panels_.data(), num_panels_, cells_, best};
    for (int64_t start = 0; start < count; start += run) {
      product.count = std::min(run, count - start);
      int64_t token = first + start;
      if (product.count < step && count >= step) {
        token = last - step;
        product.count = step;
      }
      product.tokens =
          in_place ? reinterpret_cast<const uint32_t*>(documents_.row(token)) : copy(token, product.count, buffer);
      product.count = std::max(product.count, step);
      kernels_.raise(product);
    }
  }

 private:
  // `count` tokens as cells, the last as often again as the kernels want.
  const uint32_t* copy(int64_t first, int64_t count, std::vector<uint32_t>& buffer) const {
    const int64_t rows = std::max(count, kernels_.token_step);
    buffer.resize(std::max(kCopyTokens, rows) * cells_);
    for (int64_t i = 0; i < rows; ++i) {
      write_cells(documents_, first + std::min(i, count - 1), kernels_.form, cells_, buffer.data() + i * cells_);
    }
    return buffer.data();
  }

  const Kernels& kernels_;
  Rows documents_;
  int64_t num_panels_, cells_;
  std::vector<uint32_t> panels_;
};

void check_tokens(const at::Tensor& tokens, const char* name) {
  check_rank(tokens, name, 2);
  TORCH_CHECK(tokens.size(1) > 0, name, " must have at least one column, got shape ", tokens.sizes());
  const at::ScalarType dtype = tokens.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kChar, name,
              " must be float32, bfloat16, float16 or int8, got ", dtype);
  TORCH_CHECK(dtype != at::kChar || tokens.size(1) <= kMostDimensions, name, " in int8 must have at most ",
              kMostDimensions, " columns, so that float32 holds every dot product, got shape ", tokens.sizes());
}

Rows rows_of(const at::Tensor& tokens) {
  return {static_cast<const char*>(tokens.const_data_ptr()), tokens.scalar_type(), tokens.size(1),
          tokens.size(1) * static_cast<int64_t>(tokens.element_size())};
}

at::Tensor maxsim_cpu(const at::Tensor& queries, const at::Tensor& query_offsets, const at::Tensor& documents,
                      const at::Tensor& document_offsets) {
  check_tokens(queries, "queries");
  check_tokens(documents, "documents");
  check_dtype(documents, "documents", queries.scalar_type());
  check_size(documents, "documents", 1, queries.size(1));
  check_offsets(query_offsets, "query_offsets", queries.size(0));
  check_offsets(document_offsets, "document_offsets", documents.size(0));
  const at::Tensor plain_queries = queries.contiguous(), plain_documents = documents.contiguous();
  const int64_t num_queries = query_offsets.numel() - 1, num_documents = document_offsets.numel() - 1;
  const auto* query_starts = query_offsets.const_data_ptr<int32_t>();
  const auto* starts = document_offsets.const_data_ptr<int32_t>();
  at::Tensor scores = at::full({num_queries, num_documents}, -std::numeric_limits<float>::infinity(),
                               queries.options().dtype(at::kFloat));
  auto* out = scores.mutable_data_ptr<float>();
  const Scorer scorer(rows_of(plain_queries), queries.size(0), rows_of(plain_documents));
  const int64_t products = std::max<int64_t>(1, scorer.num_panels() * kLanes * documents.size(1));
  // A thread takes the documents that begin among its tokens; those without tokens keep their minus infinity.
  parallel_for(0, documents.size(0), std::max<int64_t>(1, kProductsPerThread / products),
               [&](int64_t begin, int64_t end) {
                 std::vector<float> best(scorer.num_panels() * kLanes);
                 std::vector<uint32_t> buffer;
                 scorer.kernels().enter();
                 for (int64_t document = std::lower_bound(starts, starts + num_documents, begin) - starts;
                      document < num_documents && starts[document] < end; ++document) {
                   if (starts[document] == starts[document + 1]) continue;
                   std::fill(best.begin(), best.end(), -std::numeric_limits<float>::infinity());
                   scorer.raise(starts[document], starts[document + 1], buffer, best.data());
                   for (int64_t query = 0; query < num_queries; ++query) {
                     double sum = 0.0;
                     for (int32_t token = query_starts[query]; token < query_starts[query + 1]; ++token)
                       sum += best[token];
                     out[query * num_documents + document] = static_cast<float>(sum);
                   }
                 }
                 scorer.kernels().leave();
               });
  return scores;
}

}  // namespace
}  // namespace embedmux::maxsim

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("maxsim", &embedmux::maxsim::maxsim_cpu); }
