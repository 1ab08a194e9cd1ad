#include "huge_pages.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace embedmux {

#if defined(__linux__)

namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kRegionBytes = 16 * kHugePage;  // reserved; pages become real when they are written
constexpr int64_t kAlignment = 128;               // two cache lines, which processors fetch together

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

class Region {
 public:
  explicit Region(int64_t bytes) : bytes_(round_up(bytes, kHugePage) + kHugePage) {
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(memory_ != MAP_FAILED, "no memory for ", bytes, " bytes of packed weights");
    start_ = round_up(reinterpret_cast<int64_t>(memory_), kHugePage);
    end_ = reinterpret_cast<int64_t>(memory_) + bytes_;
    madvise(reinterpret_cast<void*>(start_), (end_ - start_) / kHugePage * kHugePage, MADV_HUGEPAGE);
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region() { munmap(memory_, bytes_); }

  // Null if there is no room left.
  void* take(int64_t bytes) {
    if (start_ + bytes > end_) return nullptr;
    void* place = reinterpret_cast<void*>(start_);
    start_ += round_up(bytes, kAlignment);
    return place;
  }

 private:
  int64_t bytes_;
  void* memory_;
  int64_t start_, end_;  // of what is free
};

}  // namespace

at::Tensor empty_on_huge_pages(at::IntArrayRef sizes, const at::TensorOptions& options) {
  static std::mutex mutex;
  static std::weak_ptr<Region> last;  // not owned: only tensors keep a region
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  const std::lock_guard<std::mutex> guard(mutex);
  std::shared_ptr<Region> region = last.lock();
  void* place = region ? region->take(bytes) : nullptr;
  if (place == nullptr) {
    region = std::make_shared<Region>(std::max(bytes, kRegionBytes));
    place = region->take(bytes);
    last = region;
  }
  return at::from_blob(place, sizes, [region](void*) {}, options);
}

#else

at::Tensor empty_on_huge_pages(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

#endif

}  // namespace embedmux
