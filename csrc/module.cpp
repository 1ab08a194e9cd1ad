// The empty Python module `embedmux.kernels._C`: importing it loads this library, and loading it registers the CPU
// kernels of the other files with torch's dispatcher. The schemas stand in kernels/<op>/__init__.py.
#include <Python.h>

#include "simd.h"
#include "tensors.h"

TORCH_LIBRARY_FRAGMENT(embedmux, library) {
  library.def("cpu_isa() -> str", []() -> std::string { return embedmux::isa_name(embedmux::isa()); });
  library.def("set_max_cpu_isa(str name) -> ()", [](const std::string& name) { embedmux::set_max_isa(name); });
}

extern "C" PyObject* PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
