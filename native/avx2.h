/* To be included first: what follows is compiled for processors with AVX2, whatever the compiler's
 * flags are. module.c calls it only where the processor has these instructions. */
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TESSERA_AVX2
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,fma,lzcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2,fma,lzcnt")
#endif
