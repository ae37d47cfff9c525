#ifdef __x86_64__
#include "avx2.h"
#define tessera_similarity tessera_similarity_avx2
#include "anchor_similarity.c"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
