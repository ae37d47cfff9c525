#ifdef __x86_64__
#include "avx2.h"
#define tessera_decode tessera_decode_avx2
#include "jpeg_window.c"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
