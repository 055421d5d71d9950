// One kernel source, compiled once per instruction set; GENMOD_ISA names the set and becomes its namespace.
#pragma once

namespace genmod {

enum class Isa : int { baseline, avx2, avx512 };

// The best set that this processor has, this build contains and ATEN_CPU_CAPABILITY allows.
Isa selected_isa();
const char* isa_name(Isa);

}  // namespace genmod

// The table `name` of the selected instruction set. Each kernel file defines one such table per set.
#if defined(__x86_64__)
#define GENMOD_SELECT(name)                                                  \
  (::genmod::selected_isa() == ::genmod::Isa::avx512 ? ::genmod::avx512::name \
   : ::genmod::selected_isa() == ::genmod::Isa::avx2 ? ::genmod::avx2::name   \
                                                     : ::genmod::baseline::name)
#define GENMOD_DECLARE(type, name)                  \
  namespace baseline { extern const type name; }    \
  namespace avx2 { extern const type name; }        \
  namespace avx512 { extern const type name; }
#else
#define GENMOD_SELECT(name) (::genmod::baseline::name)
#define GENMOD_DECLARE(type, name) \
  namespace baseline { extern const type name; }
#endif
