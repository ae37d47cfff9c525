/* From coefficients to RGB bytes, bit for bit as libjpeg-turbo does it: the inverse DCT that it calls
 * "islow" (Loeffler, Ligtenberg and Moschytz, with 13 binary places), triangular upsampling of colour
 * ("fancy"), and JFIF's colour conversion. AVX2 only. */
#ifndef TESSERA_SAMPLES_H
#define TESSERA_SAMPLES_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- Inverse DCT ------------------------------------------------------------------------- */

/* Place of coefficient k of the zigzag in a block. Rows lie in interleaved pairs, 0 with 4, 2 with 6,
 * 3 with 5 and 7 with 1, as the sums of two products in one instruction want them. */
static const uint8_t paired_order[64] = {
    0,  2,  49, 16, 51, 4,  6,  53, 18, 32, 1,  34, 20, 55, 8,  10, 57, 22, 36, 3,  33, 17,
    35, 5,  38, 24, 59, 12, 14, 61, 26, 40, 7,  37, 19, 48, 50, 21, 39, 9,  42, 28, 63, 30,
    44, 11, 41, 23, 52, 54, 25, 43, 13, 46, 15, 45, 27, 56, 58, 29, 47, 31, 60, 62};

struct pairs { /* [8] pairs of 16-bit numbers each */
    __m256i p04, p26, p71, p35;
};

static inline __m256i factors(int16_t first, int16_t second) {
    return _mm256_set1_epi32((int32_t)((uint32_t)(uint16_t)second << 16 | (uint16_t)first));
}

/* Eight transforms of eight points side by side: v[i] is point i of all, without `shift` places. */
static inline void eight_points(struct pairs in, int shift, __m256i v[8]) {
    enum { ONE = 1 << 13 };
    const __m256i half = _mm256_set1_epi32(1 << (shift - 1));
    __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(in.p04, factors(ONE, ONE)), half);
    __m256i difference = _mm256_add_epi32(_mm256_madd_epi16(in.p04, factors(ONE, -ONE)), half);
    __m256i high = _mm256_madd_epi16(in.p26, factors(4433 + 6270, 4433));
    __m256i low = _mm256_madd_epi16(in.p26, factors(4433, 4433 - 15137));
    __m256i even[4] = {_mm256_add_epi32(sum, high), _mm256_add_epi32(difference, low),
                       _mm256_sub_epi32(difference, low), _mm256_sub_epi32(sum, high)};

    __m256i both = _mm256_add_epi16(in.p71, in.p35);
    __m256i z3 = _mm256_madd_epi16(both, factors(9633 - 16069, 9633));
    __m256i z4 = _mm256_madd_epi16(both, factors(9633, 9633 - 3196));
    __m256i odd[4] = {
        _mm256_add_epi32(_mm256_madd_epi16(in.p71, factors(-7373, 12299 - 7373)), z4),
        _mm256_add_epi32(_mm256_madd_epi16(in.p35, factors(25172 - 20995, -20995)), z3),
        _mm256_add_epi32(_mm256_madd_epi16(in.p35, factors(-20995, 16819 - 20995)), z4),
        _mm256_add_epi32(_mm256_madd_epi16(in.p71, factors(2446 - 7373, -7373)), z3)};
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_srai_epi32(_mm256_add_epi32(even[i], odd[i]), shift);
        v[7 - i] = _mm256_srai_epi32(_mm256_sub_epi32(even[i], odd[i]), shift);
    }
}

/* Eight rows of 32-bit numbers to columns of 16-bit ones: 0 and 4, 1 and 5, 2 and 6, 3 and 7. */
static inline void transpose(const __m256i v[8], __m256i out[4]) {
    __m256i a = _mm256_packs_epi32(v[0], v[4]), b = _mm256_packs_epi32(v[1], v[5]);
    __m256i c = _mm256_packs_epi32(v[2], v[6]), d = _mm256_packs_epi32(v[3], v[7]);
    __m256i upper_ab = _mm256_unpacklo_epi16(a, b), lower_ab = _mm256_unpackhi_epi16(a, b);
    __m256i upper_cd = _mm256_unpacklo_epi16(c, d), lower_cd = _mm256_unpackhi_epi16(c, d);
    __m256i upper = _mm256_unpacklo_epi32(upper_ab, upper_cd);
    __m256i lower = _mm256_unpacklo_epi32(lower_ab, lower_cd);
    out[0] = _mm256_unpacklo_epi64(upper, lower);
    out[1] = _mm256_unpackhi_epi64(upper, lower);
    upper = _mm256_unpackhi_epi32(upper_ab, upper_cd);
    lower = _mm256_unpackhi_epi32(lower_ab, lower_cd);
    out[2] = _mm256_unpacklo_epi64(upper, lower);
    out[3] = _mm256_unpackhi_epi64(upper, lower);
}

/* The two halves of a register, number by number. */
static inline __m256i interleaved(__m256i halves) {
    const __m256i mask = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    return _mm256_shuffle_epi8(_mm256_permute4x64_epi64(halves, 0xD8), mask);
}

/* `block` and `quantiser` are [64] in paired order and aligned to 32 bytes; `out` is 8 x 8 bytes. */
static void inverse_dct(const int16_t *block, const int16_t *quantiser, uint8_t *out, size_t stride) {
    const __m256i *of = (const __m256i *)block, *times = (const __m256i *)quantiser;
    __m256i v[8], columns[4], rows[4];
    struct pairs in = {_mm256_mullo_epi16(of[0], times[0]), _mm256_mullo_epi16(of[1], times[1]),
                       _mm256_mullo_epi16(of[3], times[3]), _mm256_mullo_epi16(of[2], times[2])};
    eight_points(in, 11, v);
    transpose(v, columns);
    in.p04 = interleaved(columns[0]);
    in.p26 = interleaved(columns[2]);
    in.p71 = interleaved(_mm256_permute2x128_si256(columns[1], columns[3], 0x03));
    in.p35 = interleaved(_mm256_permute2x128_si256(columns[1], columns[3], 0x12));
    eight_points(in, 18, v);
    transpose(v, rows);
    const __m256i grey = _mm256_set1_epi8(-128);
    for (int i = 0; i < 2; i++) {
        __m256i bytes = _mm256_packs_epi16(rows[2 * i], rows[2 * i + 1]);
        bytes = _mm256_xor_si256(bytes, grey); /* from -128..127 to 0..255 */
        __m128i upper = _mm256_castsi256_si128(bytes), lower = _mm256_extracti128_si256(bytes, 1);
        uint8_t *row = out + 2 * i * stride;
        _mm_storel_epi64((__m128i *)row, upper);
        _mm_storeh_pd((double *)(row + stride), _mm_castsi128_pd(upper));
        _mm_storel_epi64((__m128i *)(row + 4 * stride), lower);
        _mm_storeh_pd((double *)(row + 5 * stride), _mm_castsi128_pd(lower));
    }
}

/* The same for a block of its first coefficient only. */
static void flat_block(int16_t first, int16_t quantiser, uint8_t *out, size_t stride) {
    int value = (((int16_t)(first * quantiser) + 4) >> 3) + 128;
    value = value < 0 ? 0 : value > 255 ? 255 : value;
    for (int y = 0; y < 8; y++) memset(out + y * stride, value, 8);
}

/* ---- Colour ------------------------------------------------------------------------------ */

/* Twice as many samples across, and where there is a row `far` twice as many down: three quarters of
 * the nearer and one of the farther. Of `count` samples; `before` and `behind` say whether there is
 * one more on that side, an edge repeats. `sums` is room for count + 2. Writes 2 * count bytes. */
static void upsample(const uint8_t *near, const uint8_t *far, int before, int behind, int count,
                     int16_t *restrict sums, uint8_t *restrict out) {
    int16_t *of = sums + 1;
    for (int i = -before; i < count + behind; i++)
        of[i] = (int16_t)(far ? 3 * near[i] + far[i] : near[i]);
    if (!before) of[-1] = of[0];
    if (!behind) of[count] = of[count - 1];
    int shift = far ? 4 : 2, left = far ? 8 : 1, right = far ? 7 : 2; /* roundings differ by side */
    for (int i = 0; i < count; i++) {
        out[2 * i] = (uint8_t)((3 * of[i] + of[i - 1] + left) >> shift);
        out[2 * i + 1] = (uint8_t)((3 * of[i] + of[i + 1] + right) >> shift);
    }
}

static inline __m256i sixteen_signed(const uint8_t *at) {
    return _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)at)),
                            _mm256_set1_epi16(128));
}

/* (factor * x + 2**15) >> 16 in 16 bits. */
static inline __m256i rounded_product(__m256i x, int16_t factor) {
    __m256i doubled = _mm256_mulhi_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16(factor));
    return _mm256_srai_epi16(_mm256_add_epi16(doubled, _mm256_set1_epi16(1)), 1);
}

/* -0.34414 blue - 0.71414 red, of which -1 red is left to the caller. */
static inline __m256i green_part(__m256i blue, __m256i red) {
    const __m256i by = factors(-22554, 65536 - 46802), half = _mm256_set1_epi32(1 << 15);
    __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(blue, red), by);
    __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(blue, red), by);
    return _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(low, half), 16),
                              _mm256_srai_epi32(_mm256_add_epi32(high, half), 16));
}

static inline __m128i sixteen_bytes(__m256i words) {
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

/* ITU-R BT.601 with the full range. Reads up to 15 bytes and writes up to 49 behind the end. */
static void to_rgb(const uint8_t *light, const uint8_t *blue, const uint8_t *red, int width,
                   uint8_t *out) {
    const __m128i zero = _mm_setzero_si128();
    const __m128i three = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    for (int x = 0; x < width; x += 16, out += 48) {
        __m256i y = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(light + x)));
        __m256i cb = sixteen_signed(blue + x), cr = sixteen_signed(red + x);
        __m256i b = _mm256_add_epi16(_mm256_add_epi16(cb, cb), rounded_product(cb, 116130 - 131072));
        __m256i r = _mm256_add_epi16(cr, rounded_product(cr, 91881 - 65536));
        __m256i g = _mm256_sub_epi16(green_part(cb, cr), cr);
        __m128i red8 = sixteen_bytes(_mm256_add_epi16(y, r));
        __m128i green8 = sixteen_bytes(_mm256_add_epi16(y, g));
        __m128i blue8 = sixteen_bytes(_mm256_add_epi16(y, b));
        __m128i rg[2] = {_mm_unpacklo_epi8(red8, green8), _mm_unpackhi_epi8(red8, green8)};
        __m128i b0[2] = {_mm_unpacklo_epi8(blue8, zero), _mm_unpackhi_epi8(blue8, zero)};
        for (int i = 0; i < 2; i++) {
            __m128i low = _mm_unpacklo_epi16(rg[i], b0[i]), high = _mm_unpackhi_epi16(rg[i], b0[i]);
            _mm_storeu_si128((__m128i *)(out + 24 * i), _mm_shuffle_epi8(low, three));
            _mm_storeu_si128((__m128i *)(out + 24 * i + 12), _mm_shuffle_epi8(high, three));
        }
    }
}

#endif
