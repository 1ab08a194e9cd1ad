// embedmux::gated_activation on the CPU: element by element, one source for every instruction set.
#include <algorithm>

#include "activations.h"
#include "elements.h"
#include "lora_vector.h"
#include "simd.h"
#include "tensors.h"

namespace embedmux {
namespace {

enum class Gate { swiglu, geglu, geglu_tanh };

constexpr int64_t kElementsPerThread = 16384;  // below this the work is done before a second thread has woken up

template <typename T>
struct Gated {
  const T* x;  // rows of [gate, up], `width` values each
  T* out;
  int64_t stride, width;
};

template <int W, Gate G>
EMBEDMUX_INLINE typename Lanes<W>::Float activate(const typename Lanes<W>::Float& gate) {
  if constexpr (G == Gate::swiglu) return silu<W>(gate);
  if constexpr (G == Gate::geglu) return gelu<W>(gate);
  return gelu_tanh<W>(gate);
}

template <int W, Gate G, typename T>
EMBEDMUX_INLINE void gate_rows(const Gated<T>& call, int64_t begin, int64_t end) {
  const int64_t width = call.width;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = call.x + row * call.stride;
    const T* up = gate + width;
    T* out = call.out + row * width;
    int64_t j = 0;
    for (; j + W <= width; j += W) {
      store<W>(out + j, activate<W, G>(load<W>(gate + j)) * load<W>(up + j), W);
    }
    if (j < width) {
      const int64_t count = width - j;
      store<W>(out + j, activate<W, G>(load_part<W>(gate + j, count)) * load_part<W>(up + j, count), count);
    }
  }
}

#ifdef EMBEDMUX_X86
template <Gate G, typename T>
EMBEDMUX_AVX512 void gate_avx512(const Gated<T>& call, int64_t begin, int64_t end) {
  gate_rows<16, G>(call, begin, end);
}

template <Gate G, typename T>
EMBEDMUX_AVX2 void gate_avx2(const Gated<T>& call, int64_t begin, int64_t end) {
  gate_rows<8, G>(call, begin, end);
}
#endif

template <Gate G, typename T>
void gate_baseline(const Gated<T>& call, int64_t begin, int64_t end) {
  gate_rows<4, G>(call, begin, end);
}

template <Gate G, typename T, Isa Level>
constexpr auto kernel_for() {
#ifdef EMBEDMUX_X86
  if constexpr (Level == Isa::avx512) return gate_avx512<G, T>;
  if constexpr (Level == Isa::avx2) return gate_avx2<G, T>;
#endif
  if constexpr (Level == Isa::baseline) return gate_baseline<G, T>;
}

template <Gate G>
void run(const at::Tensor& x, const at::Tensor& out) {
  choose_kernel(x.scalar_type(), [&]<typename T, Isa Level>() {
    const Gated<T> call{static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()), x.stride(0),
                        out.size(1)};
    constexpr auto kernel = kernel_for<G, T, Level>();
    const int64_t grain = std::max<int64_t>(1, kElementsPerThread / out.size(1));
    parallel_for(0, x.size(0), grain, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
  });
}

at::Tensor gated_activation_cpu(const at::Tensor& x, c10::string_view kind) {
  check_rank(x, "x", 2);
  TORCH_CHECK(x.size(1) > 0 && x.size(1) % 2 == 0, "x must be [T, 2 I] with I at least 1, got shape ", x.sizes());
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf,
              "x must be float32, bfloat16 or float16, got ", x.scalar_type());
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  const at::Tensor out = at::empty({x.size(0), x.size(1) / 2}, x.options());
  if (kind == "swiglu") {
    run<Gate::swiglu>(rows, out);
  } else if (kind == "geglu") {
    run<Gate::geglu>(rows, out);
  } else {
    TORCH_CHECK(kind == "geglu_tanh", "kind must be one of swiglu, geglu, geglu_tanh, got '", kind, "'");
    run<Gate::geglu_tanh>(rows, out);
  }
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("gated_activation", &embedmux::gated_activation_cpu); }
