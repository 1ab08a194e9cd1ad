#include "similarity_search.h"

#include <string>

namespace embedmux::similarity {
namespace {

constexpr int64_t kMaxWidth = 65536;
constexpr int64_t kSpanBytes = 128 << 10;  // of rows that stay in the second-level cache while all groups meet them
constexpr int64_t kBytesPerThread = 256 << 10;  // of rows and groups, below which a second thread does not pay
constexpr int64_t kShortRow = 2 * kCell;
constexpr int64_t kFewQueries = 8;  // up to here, bits are counted as they are, rather than made bytes for AMX

enum class Kind { float32, bfloat16, float16, int8, hamming, float_binary, float_int8 };

Kind kind_of(const std::string& name, const at::Tensor& queries) {
  if (name == "int8") return Kind::int8;
  if (name == "hamming") return Kind::hamming;
  if (name == "float_binary") return Kind::float_binary;
  if (name == "float_int8") return Kind::float_int8;
  TORCH_CHECK(name == "dot", "kind must be one of dot, int8, hamming, float_binary, float_int8, got '", name, "'");
  const at::ScalarType dtype = queries.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
              "queries must be torch.float32, torch.bfloat16 or torch.float16, got ", dtype);
  return dtype == at::kFloat ? Kind::float32 : dtype == at::kHalf ? Kind::float16 : Kind::bfloat16;
}

#ifdef EMBEDMUX_X86
#define SIMILARITY_CHOOSE(name) \
  isa() >= Isa::avx512 ? &name##_avx512 : isa() >= Isa::avx2 ? &name##_avx2 : &name##_baseline
#else
#define SIMILARITY_CHOOSE(name) &name##_baseline
#endif

const Kernel* choose_kernel(Kind kind, int64_t num_queries) {
  switch (kind) {
    case Kind::float32:
      return SIMILARITY_CHOOSE(float32);
    case Kind::bfloat16:
      return SIMILARITY_CHOOSE(bfloat16);
    case Kind::float16:
      return SIMILARITY_CHOOSE(float16);
    case Kind::float_binary:
      return SIMILARITY_CHOOSE(float_binary);
    case Kind::float_int8:
      return SIMILARITY_CHOOSE(float_int8);
    case Kind::int8:
#ifdef EMBEDMUX_X86
      if (has_amx_int8()) return &int8_amx;
      if (has_vnni() && has_vpopcntdq()) return &int8_vnni;
      if (isa() >= Isa::avx2) return &int8_avx2;
#endif
      return &int8_baseline;
    case Kind::hamming:
#ifdef EMBEDMUX_X86
      if (has_amx_int8() && num_queries > kFewQueries) return &hamming_amx;
      if (has_vnni() && has_vpopcntdq()) return &hamming_vpopcntdq;
      if (isa() >= Isa::avx2) return &hamming_avx2;
#endif
      return &hamming_baseline;
  }
  return nullptr;
}

const Finish* choose_finish() {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return &finish_avx512;
  if (isa() >= Isa::avx2) return &finish_avx2;
#endif
  return &finish_baseline;
}

at::ScalarType row_type(Kind kind) {
  switch (kind) {
    case Kind::float32:
      return at::kFloat;
    case Kind::bfloat16:
      return at::kBFloat16;
    case Kind::float16:
      return at::kHalf;
    case Kind::hamming:
    case Kind::float_binary:
      return at::kByte;
    default:
      return at::kChar;
  }
}

void check_vectors(const at::Tensor& queries, const at::Tensor& rows, Kind kind) {
  const bool has_float_queries = kind == Kind::float_binary || kind == Kind::float_int8;
  check_dtype(queries, "queries", has_float_queries ? at::kFloat : row_type(kind));
  check_dtype(rows, "rows", row_type(kind));
  check_rank(queries, "queries", 2);
  TORCH_CHECK(queries.size(1) >= 1 && queries.size(1) <= kMaxWidth, "queries must be [Q, D] with D from 1 to ",
              kMaxWidth, ", got shape ", queries.sizes());
  check_rank(rows, "rows", 2);
  check_size(rows, "rows", 1, kind == Kind::float_binary ? (queries.size(1) + 7) / 8 : queries.size(1));
}

// The vector's values, or `otherwise`, and zeros for columns without a query.
void fill(const std::optional<at::Tensor>& vector, const char* name, bool is_taken, const at::Tensor& queries,
          float otherwise, float* out) {
  if (!vector.has_value()) {
    std::fill_n(out, queries.size(0), otherwise);
    return;
  }
  TORCH_CHECK(is_taken, name, " must be None for this kind");
  check_dtype(*vector, name, at::kFloat);
  check_rank(*vector, name, 1);
  check_size(*vector, name, 0, queries.size(0));
  const at::Tensor plain = vector->contiguous();
  std::copy_n(plain.const_data_ptr<float>(), queries.size(0), out);
}

at::Tensor with_plain_rows(const at::Tensor& tensor) {
  const bool plain = (tensor.stride(1) == 1 || tensor.size(1) == 1) && tensor.stride(0) >= tensor.size(1);
  return plain ? tensor : tensor.contiguous();
}

}  // namespace

Search::Search(const at::Tensor& queries, const at::Tensor& rows, c10::string_view kind_name,
               const std::optional<at::Tensor>& query_scale, const std::optional<at::Tensor>& query_offset,
               bool one_by_one)
    : num_queries(0), num_rows(0), group_size(0), prepared_(0), bias_(0), scale_(0), offset_(0) {
  const Kind kind = kind_of(std::string(kind_name), queries);
  check_vectors(queries, rows, kind);
  num_queries = queries.size(0);
  num_rows = rows.size(0);
  group_size = one_by_one || num_queries == 1 ? 1 : kGroup;
  kernel_ = choose_kernel(kind, group_size == 1 ? 1 : num_queries);
  finish_ = choose_finish();
  query_tensor_ = queries.to(kind == Kind::int8 || kind == Kind::hamming ? queries.scalar_type() : at::kFloat);
  query_tensor_ = query_tensor_.contiguous();
  row_tensor_ = with_plain_rows(rows);
  rows_ = static_cast<const uint8_t*>(row_tensor_.const_data_ptr());
  row_stride_ = row_tensor_.stride(0) * row_tensor_.element_size();
  width_ = queries.size(1);
  row_bytes_ = width_ * kernel_->element_bytes;
  query_bytes_ = round_up(row_bytes_, kCell);
  fetches_ahead_ = group_size == 1 ? row_bytes_ <= kShortRow : kernel_->needs_whole_blocks;

  const int64_t columns = group_size == 1 ? num_queries : round_up(num_queries, kLanes);
  scale_ = Cells((columns + kLanes) * 4);
  offset_ = Cells((columns + kLanes) * 4);
  bias_ = Cells((columns + kLanes) * 4);
  const bool is_int8 = kind == Kind::int8;
  fill(query_scale, "query_scale", is_int8, queries, kind == Kind::hamming ? -1.0F : 1.0F, scale_.data<float>());
  fill(query_offset, "query_offset", is_int8 || kind == Kind::float_int8, queries, 0.0F, offset_.data<float>());
  prepared_ = Cells(columns * query_bytes_);
  const auto* source = static_cast<const uint8_t*>(query_tensor_.const_data_ptr());
  const int64_t stride = width_ * query_tensor_.element_size();
  for (int64_t group = 0; group < num_groups(); ++group) {
    const int64_t first = group * group_size;
    kernel_->prepare({source + first * stride, stride, width_, queries_in(group), columns_of(group), query_bytes_,
                      prepared_.data() + first * query_bytes_, bias_.data<int32_t>() + first});
  }
}

int64_t Search::threads_for(int64_t rows) const {
  const int64_t worth = rows * row_bytes_ * num_groups() / kBytesPerThread;
  return std::clamp<int64_t>(worth, 1, at::get_num_threads());
}

Search::Worker::Worker(const Search& search)
    : search_(search),
      span_(search.num_groups() == 1
                ? kBlock
                : std::clamp<int64_t>(kSpanBytes / search.query_bytes_ / kBlock * kBlock, kBlock, 1024)),
      decoded_(span_ * search.query_bytes_),
      sums_(kBlock * kGroup * 4) {
  if (search_.kernel_->enter != nullptr) search_.kernel_->enter(search_.group_size == 1);
}

Search::Worker::~Worker() {
  if (search_.kernel_->leave != nullptr) search_.kernel_->leave();
}

bool Search::Worker::is_direct(int64_t count) const {
  const Kernel& kernel = *search_.kernel_;
  if (kernel.decode != nullptr) return false;
  return !kernel.needs_whole_blocks || (count % kBlock == 0 && search_.row_bytes_ == search_.query_bytes_);
}

void Search::Worker::decode_row(int64_t row, int64_t place) {
  const uint8_t* source = search_.rows_ + row * search_.row_stride_;
  if (search_.kernel_->decode == nullptr) {
    std::memcpy(decoded_at(place), source, search_.row_bytes_);
  } else {
    search_.kernel_->decode(source, search_.width_, decoded_at(place));
  }
}

void Search::Worker::decode(int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; ++i) decode_row(first + i, i);
}

Sums Search::Worker::score(int64_t group, const Block& block) {
  const int64_t first = group * search_.group_size;
  const int columns = search_.columns_of(group);
  search_.kernel_->score({search_.prepared_.data() + first * search_.query_bytes_,
                          search_.bias_.data<int32_t>() + first, columns, search_.row_bytes_, search_.query_bytes_},
                         block, sums_.data<int32_t>());
  return {sums_.data<int32_t>(),
          search_.kernel_->sums_are_integers,
          block.count,
          columns,
          search_.scale_.data<float>() + first,
          search_.offset_.data<float>() + first};
}

Sums Search::Worker::gather(int64_t group, const int64_t* ids, int count) {
  for (int i = 0; i < count; ++i) decode_row(ids[i], i);
  return score(group, {decoded_.data(), search_.query_bytes_, count, nullptr});
}

}  // namespace embedmux::similarity
