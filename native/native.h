/* What module.c calls. Each function is there twice on x86-64: for AVX2, and for any processor. */
#ifndef TESSERA_NATIVE_H
#define TESSERA_NATIVE_H

#include <stdint.h>

enum { DECODED = 0, DAMAGED = 1, UNSUPPORTED = 2 };
enum { REASON_LENGTH = 200 };

/* Decode the windows of `count` files on so many threads, of which the calling one is one.
 *   windows  [count, 4]: y, x, height, width in the upright picture
 *   images   [count, side, side, 3], black where a file was not decoded
 *   status   [count], filled with UNSUPPORTED by the caller: it stays so where no thread starts
 *   reasons  [count, REASON_LENGTH], why a file was not decoded; zeros end each */
typedef void Decode(const uint8_t *const *data, const int64_t *sizes, const int32_t *windows,
                    int count, int side, int num_threads, uint8_t *images, int32_t *status,
                    char *reasons);

/* Fill similarity [num_images, num_patches]; anchor_similarity.c says of what. The calling thread is
 * one of the threads. Returns 0, or 1 where memory ran out. */
typedef int Similarity(const uint8_t *patches, const int64_t *anchors, int num_images,
                       int num_patches, int num_values, int num_anchors, const double *scale,
                       const double *shift, int num_threads, float *similarity);

extern Decode tessera_decode, tessera_decode_avx2;
extern Similarity tessera_similarity, tessera_similarity_avx2;

#endif
