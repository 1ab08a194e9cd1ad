// The empty Python module `embedmux.kernels._C`: importing it loads this library, and loading it registers the CPU
// kernels of the other files with torch's dispatcher. The schemas stand in kernels/<op>/__init__.py.
#include <Python.h>

#include "simd.h"
#include "tensors.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace {

// glibc gives memory that a batch has freed back to the system, and every next batch pays for fresh pages, some percent
// of its time. From here on the process keeps up to 256 MiB, and takes blocks of less than 32 MiB out of it.
void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(embedmux, library) {
  library.def("keep_freed_memory() -> ()", keep_freed_memory);
  library.def("cpu_isa() -> str", []() -> std::string { return embedmux::isa_name(embedmux::isa()); });
  library.def("set_max_cpu_isa(str name) -> ()", [](const std::string& name) { embedmux::set_max_isa(name); });
}

extern "C" PyObject* PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
