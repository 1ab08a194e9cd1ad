// The parts of the AVX-512 bfloat16 attention that the AMX variant uses as they are.
#pragma once

#include "attention.h"
#include "simd.h"

namespace embedmux::attention {

void pack_bfloat16_rows(const Source& source, Cell* out, int out_stride);
void pack_bfloat16_keys(const Source& source, Cell* panels, int panel_stride, int padded_keys);
void pack_bfloat16_values(const Source& source, Cell* panels, int panel_stride, int padded_keys);
void softmax_bfloat16(const Softmax& step);
void finish_bfloat16(const float* output, int output_stride, const float* sum, const Source& target);

}  // namespace embedmux::attention
