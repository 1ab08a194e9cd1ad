// Memory for packed weights. A forward pass reads all of them once, in pages of 4 KiB some thousand pages, more than
// the processor remembers the places of; a huge page of 2 MiB is one place.
#pragma once

#include <ATen/ATen.h>

namespace embedmux {

// A contiguous tensor, not filled, on huge pages where the system gives them. Weights lie one after the other in large
// regions; a region goes with its last tensor.
at::Tensor empty_on_huge_pages(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace embedmux
