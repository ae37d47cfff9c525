/* Antialiased bicubic resize of RGB bytes, rows first, in integers.
 *
 * The weights are Pillow's: Keys' cubic with a = -0.5, stretched by the reduction, cut off at the
 * edge and brought to a sum of one. Between the passes a value keeps six binary places. */
#ifndef TESSERA_BICUBIC_H
#define TESSERA_BICUBIC_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef TESSERA_AVX2
#include <immintrin.h>
#endif

enum { WEIGHT_BITS = 14, KEPT_BITS = 6, GROUP = 4 };
enum { ROW_SHIFT = WEIGHT_BITS - KEPT_BITS, COLUMN_SHIFT = WEIGHT_BITS + KEPT_BITS };
enum { SLACK = 64 }; /* elements that the passes may read and write behind a row */

struct taps {
    int width, *first, *count; /* [S] input places that each output place is made of */
    int16_t *weights;          /* [S, width], zero behind count; width is a multiple of GROUP */
};

static double cubic(double x) {
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/* Weights that bring `length` input places, from `start` on, to S places; `limit` places exist.
 * Returns 0 where memory is out. */
static int make_taps(struct taps *taps, int side, double start, double length, int limit) {
    double scale = length / side, stretch = scale > 1 ? scale : 1, radius = 2 * stretch;
    taps->width = ((int)ceil(radius) * 2 + 1 + GROUP - 1) / GROUP * GROUP;
    size_t size = side * (taps->width * sizeof(int16_t) + 2 * sizeof(int));
    free(taps->weights);
    taps->weights = calloc(1, size + taps->width * sizeof(double));
    if (!taps->weights) return 0;
    taps->first = (int *)(taps->weights + (size_t)side * taps->width);
    taps->count = taps->first + side;
    double *exact = (double *)((char *)taps->weights + size);
    for (int place = 0; place < side; place++) {
        double centre = start + (place + 0.5) * scale, sum = 0;
        int first = (int)(centre - radius + 0.5), end = (int)(centre + radius + 0.5);
        if (first < 0) first = 0;
        if (end > limit) end = limit;
        for (int i = first; i < end; i++) sum += exact[i - first] = cubic((i - centre + 0.5) / stretch);
        int16_t *weights = taps->weights + (size_t)place * taps->width;
        int left = 1 << WEIGHT_BITS, largest = 0;
        for (int i = 0; i < end - first; i++) {
            left -= weights[i] = (int16_t)lrint(exact[i] / sum * (1 << WEIGHT_BITS));
            if (weights[i] > weights[largest]) largest = i;
        }
        weights[largest] += left; /* the sum is exact, so that a flat area stays as it is */
        taps->first[place] = first;
        taps->count[place] = end - first;
    }
    return 1;
}

#ifdef TESSERA_AVX2

static __m256i two_weights(const int16_t *weights) {
    int32_t both;
    memcpy(&both, weights, sizeof both);
    return _mm256_set1_epi32(both);
}

static __m256i sixteen(const uint8_t *at) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)at));
}

/* One row between the passes: a weighted sum of the input rows from `rows` on. */
static void blend_rows(const uint8_t *rows, size_t stride, const struct taps *taps, int place,
                       int length, int16_t *out) {
    const int16_t *weights = taps->weights + (size_t)place * taps->width;
    int count = taps->count[place];
    const __m256i half = _mm256_set1_epi32(1 << (ROW_SHIFT - 1));
    for (int x = 0; x < length; x += 32) {
        __m256i sums[4] = {half, half, half, half};
        for (int k = 0; k < count; k += 2) {
            const uint8_t *one = rows + x + k * stride, *two = k + 1 < count ? one + stride : one;
            __m256i both = two_weights(weights + k);
            for (int i = 0; i < 2; i++) {
                __m256i a = sixteen(one + 16 * i), b = sixteen(two + 16 * i);
                sums[2 * i] = _mm256_add_epi32(
                    sums[2 * i], _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), both));
                sums[2 * i + 1] = _mm256_add_epi32(
                    sums[2 * i + 1], _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), both));
            }
        }
        for (int i = 0; i < 4; i++) sums[i] = _mm256_srai_epi32(sums[i], ROW_SHIFT);
        for (int i = 0; i < 2; i++)
            _mm256_storeu_si256((__m256i *)(out + x + 16 * i),
                                _mm256_packs_epi32(sums[2 * i], sums[2 * i + 1]));
    }
}

/* One output row from a row between the passes: four input pixels at a time, two in each half. */
static void blend_columns(const int16_t *row, const struct taps *taps, int side, uint8_t *out) {
    const int16_t *weights = taps->weights;
    const __m256i by_channel = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, -1, -1, -1, -1));
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const __m128i half = _mm_set1_epi32(1 << (COLUMN_SHIFT - 1));
    for (int place = 0; place < side; place++, weights += taps->width, out += 3) {
        const int16_t *at = row + 3 * taps->first[place];
        __m256i sums = _mm256_setzero_si256();
        for (int k = 0; k < taps->count[place]; k += GROUP, at += 3 * GROUP) {
            __m256i pixels = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)at)),
                _mm_loadu_si128((const __m128i *)(at + 6)), 1);
            __m256i four = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(weights + k)));
            four = _mm256_permutevar8x32_epi32(four, spread);
            pixels = _mm256_shuffle_epi8(pixels, by_channel);
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pixels, four));
        }
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        sum = _mm_srai_epi32(_mm_add_epi32(sum, half), COLUMN_SHIFT);
        sum = _mm_packs_epi32(sum, sum);
        uint32_t rgb = (uint32_t)_mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
        memcpy(out, &rgb, 3);
    }
}

#else

static void blend_rows(const uint8_t *rows, size_t stride, const struct taps *taps, int place,
                       int length, int16_t *out) {
    const int16_t *weights = taps->weights + (size_t)place * taps->width;
    for (int x = 0; x < length; x += 32) {
        int32_t sums[32];
        for (int i = 0; i < 32; i++) sums[i] = 1 << (ROW_SHIFT - 1);
        for (int k = 0; k < taps->count[place]; k++)
            for (int i = 0; i < 32; i++) sums[i] += weights[k] * rows[k * stride + x + i];
        for (int i = 0; i < 32; i++) out[x + i] = (int16_t)(sums[i] >> ROW_SHIFT);
    }
}

static void blend_columns(const int16_t *row, const struct taps *taps, int side, uint8_t *out) {
    const int16_t *weights = taps->weights;
    for (int place = 0; place < side; place++, weights += taps->width, out += 3) {
        const int16_t *at = row + 3 * taps->first[place];
        for (int channel = 0; channel < 3; channel++) {
            int32_t sum = 1 << (COLUMN_SHIFT - 1);
            for (int k = 0; k < taps->count[place]; k++) sum += weights[k] * at[3 * k + channel];
            sum >>= COLUMN_SHIFT;
            out[channel] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
        }
    }
}

#endif
#endif
