/* A quick way for the commonest JPEG files: baseline, one scan, grey or YCbCr in 4:4:4, 4:2:2 or
 * 4:2:0. Huffman decoding is what a crop cannot save, and takes most of libjpeg-turbo's time.
 *
 * Rows of the window come in order, each RGB value as libjpeg-turbo gives it. Blocks outside of the
 * window are parsed only. Whatever is out of the ordinary or damaged returns 0 and is left to
 * libjpeg-turbo, which knows what to do or what to complain of. */
#ifndef TESSERA_BASELINE_H
#define TESSERA_BASELINE_H

#include <immintrin.h>
#include <stdlib.h>

#include "huffman.h"
#include "samples.h"

enum { MOST_COMPONENTS = 3, MOST_FACTOR = 2, BEHIND = 64 }; /* bytes read or written behind a row */

struct component {
    int id, h, v, quantiser, dc, ac;
    int left, top, columns, rows; /* blocks of the window */
    int width, height;            /* samples of the whole picture */
    uint8_t *plane;               /* [8 * rows, 8 * columns] */
    int16_t last_dc;
};

struct baseline {
    int height, width, count, interval;
    int h, v, across, down; /* largest sampling factors; units across and down */
    struct component components[MOST_COMPONENTS];
    _Alignas(32) int16_t quantisers[4][64]; /* in paired order */
    int has_quantiser[4];
    struct huffman dc[4], ac[4];
    struct bits bits;
    const uint8_t *at, *end; /* behind the segment in work; of the file */
    int next_row, since, restart;
    uint8_t *clean, *planes, *colours; /* segment; window of all planes; two upsampled rows */
    int16_t *sums;
    size_t clean_size, planes_size, colours_size, sums_size;
};

/* ---- Headers ----------------------------------------------------------------------------- */

static int read_quantisers(struct baseline *jpeg, const uint8_t *at, const uint8_t *end) {
    for (; at < end; at += 65) {
        int number = *at & 15;
        if (*at >> 4 || number > 3 || end - at < 65) return 0;
        for (int k = 0; k < 64; k++) jpeg->quantisers[number][paired_order[k]] = at[1 + k];
        jpeg->has_quantiser[number] = 1;
    }
    return 1;
}

static int read_huffman(struct baseline *jpeg, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int is_ac = *at >> 4, number = *at & 15;
        if (is_ac > 1 || number > 3 || end - at < 1 + LONGEST) return 0;
        struct huffman *table = is_ac ? &jpeg->ac[number] : &jpeg->dc[number];
        int total = build_huffman(table, at + 1, end - at - 1 - LONGEST, is_ac);
        if (total < 0) return 0;
        at += 1 + LONGEST + total;
    }
    return 1;
}

static int read_frame(struct baseline *jpeg, const uint8_t *at, size_t size) {
    if (size < 6 || at[0] != 8) return 0;
    jpeg->height = at[1] << 8 | at[2];
    jpeg->width = at[3] << 8 | at[4];
    jpeg->count = at[5];
    if ((jpeg->count != 1 && jpeg->count != 3) || size != 6 + 3 * (size_t)jpeg->count) return 0;
    if (!jpeg->height || !jpeg->width) return 0;
    for (int i = 0; i < jpeg->count; i++) {
        struct component *of = &jpeg->components[i];
        const uint8_t *from = at + 6 + 3 * i;
        of->id = from[0];
        if (jpeg->count == 3 && of->id != i + 1) return 0; /* may mean RGB */
        of->h = from[1] >> 4;
        of->v = from[1] & 15;
        if (of->h < 1 || of->h > 4 || of->v < 1 || of->v > 4) return 0;
        if (jpeg->count == 1) of->h = of->v = 1; /* one component is never interleaved */
        of->quantiser = from[2];
        if (of->quantiser > 3 || (i && (of->h != 1 || of->v != 1))) return 0;
    }
    jpeg->h = jpeg->components[0].h;
    jpeg->v = jpeg->components[0].v;
    if (jpeg->h > MOST_FACTOR || jpeg->v > jpeg->h) return 0;
    jpeg->across = (jpeg->width + 8 * jpeg->h - 1) / (8 * jpeg->h);
    jpeg->down = (jpeg->height + 8 * jpeg->v - 1) / (8 * jpeg->v);
    for (int i = 0; i < jpeg->count; i++) {
        struct component *of = &jpeg->components[i];
        of->width = (jpeg->width * of->h + jpeg->h - 1) / jpeg->h;
        of->height = (jpeg->height * of->v + jpeg->v - 1) / jpeg->v;
        if (of->width <= 2) return 0; /* libjpeg-turbo upsamples these otherwise */
    }
    return 1;
}

static int read_scan(struct baseline *jpeg, const uint8_t *at, size_t size) {
    if (size != 4 + 2 * (size_t)jpeg->count || at[0] != jpeg->count) return 0;
    for (int i = 0; i < jpeg->count; i++) {
        struct component *of = &jpeg->components[i];
        of->dc = at[2 + 2 * i] >> 4;
        of->ac = at[2 + 2 * i] & 15;
        if (at[1 + 2 * i] != of->id || of->dc > 3 || of->ac > 3) return 0;
        if (!jpeg->dc[of->dc].defined || !jpeg->ac[of->ac].defined ||
            !jpeg->has_quantiser[of->quantiser])
            return 0;
    }
    const uint8_t *range = at + 1 + 2 * jpeg->count;
    return range[0] == 0 && range[1] == 63 && range[2] == 0;
}

/* Read all up to the scan's data. Returns 0 for what is not of the commonest kind. */
static int read_headers(struct baseline *jpeg, const uint8_t *data, size_t size) {
    int has_frame = 0;
    jpeg->interval = 0;
    memset(jpeg->has_quantiser, 0, sizeof jpeg->has_quantiser);
    for (int i = 0; i < 4; i++) jpeg->dc[i].defined = jpeg->ac[i].defined = 0;
    if (size < 4 || data[0] != 0xFF || data[1] != 0xD8) return 0;
    for (size_t at = 2; at + 4 <= size;) {
        if (data[at] != 0xFF) return 0;
        int marker = data[at + 1], good = 1;
        size_t length = (size_t)data[at + 2] << 8 | data[at + 3];
        if (length < 2 || at + 2 + length > size) return 0;
        const uint8_t *body = data + at + 4;
        at += 2 + length;
        length -= 2;
        if (marker == 0xDB) good = read_quantisers(jpeg, body, body + length);
        else if (marker == 0xC4) good = read_huffman(jpeg, body, body + length);
        else if (marker == 0xC0) good = !has_frame && (has_frame = read_frame(jpeg, body, length));
        else if (marker == 0xDD && length == 2) jpeg->interval = body[0] << 8 | body[1];
        else if (marker == 0xEE && length >= 12 && memcmp(body, "Adobe", 5) == 0) good = body[11] == 1;
        else if (marker == 0xDA) {
            jpeg->at = data + at;
            jpeg->end = data + size;
            return has_frame && read_scan(jpeg, body, length);
        } else good = (marker >= 0xE0 && marker <= 0xEF) || marker == 0xFE;
        if (!good) return 0;
    }
    return 0;
}

/* ---- The window -------------------------------------------------------------------------- */

static int enlarge(void *buffer_at, size_t *size, size_t wanted) {
    void **buffer = buffer_at;
    if (wanted <= *size) return 1;
    free(*buffer);
    *buffer = malloc(wanted);
    *size = *buffer ? wanted : 0;
    return *buffer != NULL;
}

static int smaller(int a, int b) { return a < b ? a : b; }
static int greater(int a, int b) { return a > b ? a : b; }

static void next_segment(struct baseline *jpeg) {
    jpeg->at = take_segment(jpeg->at, jpeg->end, jpeg->clean, &jpeg->bits);
    for (int i = 0; i < jpeg->count; i++) jpeg->components[i].last_dc = 0;
    jpeg->since = 0;
}

/* Make ready for the rows of a window (y, x, height, width) that lies inside of the picture; behind
 * read_headers. */
static int open_window(struct baseline *jpeg, const int32_t *window) {
    size_t total = 0, sizes[MOST_COMPONENTS];
    for (int i = 0; i < jpeg->count; i++) {
        struct component *of = &jpeg->components[i];
        int down = jpeg->v / of->v, across = jpeg->h / of->h;
        /* Colour upsampling looks at neighbours: one sample more on each side. */
        int margin_y = down > 1, margin_x = across > 1;
        of->top = greater(window[0] / down - margin_y, 0) / 8;
        of->left = greater(window[1] / across - margin_x, 0) / 8;
        int bottom = smaller((window[0] + window[2] - 1) / down + margin_y, of->height - 1);
        int right = smaller((window[1] + window[3] - 1) / across + margin_x, of->width - 1);
        of->rows = bottom / 8 + 1 - of->top;
        of->columns = right / 8 + 1 - of->left;
        sizes[i] = 64 * (size_t)of->rows * (size_t)of->columns + BEHIND;
        total += sizes[i];
    }
    size_t row = (size_t)window[3] + 4 + BEHIND;
    if (!enlarge(&jpeg->planes, &jpeg->planes_size, total) ||
        !enlarge(&jpeg->colours, &jpeg->colours_size, 2 * row) ||
        !enlarge(&jpeg->sums, &jpeg->sums_size, row * sizeof *jpeg->sums) ||
        !enlarge(&jpeg->clean, &jpeg->clean_size, (size_t)(jpeg->end - jpeg->at) + 32 + PAD))
        return 0;
    uint8_t *at = jpeg->planes;
    for (int i = 0; i < jpeg->count; at += sizes[i], i++) jpeg->components[i].plane = at;
    jpeg->next_row = jpeg->restart = 0;
    next_segment(jpeg);
    return 1;
}

/* Decode one block; outside of the window only its bits are read. */
static int decode_block(struct baseline *jpeg, struct component *of, int row, int column) {
    _Alignas(32) int16_t block[64] = {0};
    int last = read_block(&jpeg->dc[of->dc], &jpeg->ac[of->ac], &jpeg->bits, paired_order, block,
                          &of->last_dc);
    if (last < 0) return 0;
    row -= of->top;
    column -= of->left;
    if (row < 0 || row >= of->rows || column < 0 || column >= of->columns) return 1;
    size_t stride = 8 * (size_t)of->columns;
    uint8_t *out = of->plane + 8 * ((size_t)row * stride + (size_t)column);
    const int16_t *quantiser = jpeg->quantisers[of->quantiser];
    if (last > 0) inverse_dct(block, quantiser, out, stride);
    else flat_block(block[0], quantiser[0], out, stride);
    return 1;
}

/* Decode a row of units: of interleaved blocks of all components. */
static int decode_row(struct baseline *jpeg) {
    for (int column = 0; column < jpeg->across; column++, jpeg->since++) {
        if (jpeg->interval && jpeg->since == jpeg->interval) {
            if (overrun(&jpeg->bits) || left_over(&jpeg->bits) || jpeg->end - jpeg->at < 2 ||
                jpeg->at[0] != 0xFF || jpeg->at[1] != 0xD0 + jpeg->restart)
                return 0;
            jpeg->restart = (jpeg->restart + 1) & 7;
            jpeg->at += 2;
            next_segment(jpeg);
        }
        for (int i = 0; i < jpeg->count; i++) {
            struct component *of = &jpeg->components[i];
            for (int v = 0; v < of->v; v++)
                for (int h = 0; h < of->h; h++)
                    if (!decode_block(jpeg, of, jpeg->next_row * of->v + v, column * of->h + h))
                        return 0;
        }
    }
    jpeg->next_row++;
    return !overrun(&jpeg->bits);
}

/* Row y of a colour's plane, from sample x on. */
static const uint8_t *samples_at(const struct component *of, int y, int x) {
    y = smaller(greater(y, 0), of->height - 1) - 8 * of->top;
    return of->plane + (size_t)y * 8 * (size_t)of->columns + (x - 8 * of->left);
}

/* Write row y of the picture between the columns x and x + width, which lie in the window. Rows are
 * asked for from the window's first on. Writes up to 49 bytes behind the row. Returns 0 where
 * libjpeg-turbo is to decide. */
static int read_rgb_row(struct baseline *jpeg, int y, int x, int width, uint8_t *out) {
    const struct component *light = jpeg->components;
    int low = jpeg->v == 1 ? y : y / 2 + 1; /* the lowest row that is needed, of the colours if smaller */
    while (jpeg->next_row <= smaller(low / 8, jpeg->down - 1))
        if (!decode_row(jpeg)) return 0;
    size_t half = (size_t)width + 4 + BEHIND;
    const uint8_t *colours[2] = {jpeg->colours, jpeg->colours};
    if (jpeg->count == 1) memset(jpeg->colours, 128, half);
    for (int i = 0; i < jpeg->count - 1; i++) {
        const struct component *of = &jpeg->components[1 + i];
        if (jpeg->h == 1) {
            colours[i] = samples_at(of, y, x);
            continue;
        }
        uint8_t *row = jpeg->colours + (size_t)i * half;
        int beside = y % 2 ? y / 2 + 1 : y / 2 - 1;
        const uint8_t *near = samples_at(of, y / jpeg->v, x / 2);
        const uint8_t *far = jpeg->v == 2 ? samples_at(of, beside, x / 2) : NULL;
        upsample(near, far, x / 2 > 0, (x + width - 1) / 2 < of->width - 1,
                 (x + width - 1) / 2 - x / 2 + 1, jpeg->sums, row);
        colours[i] = row + x % 2;
    }
    to_rgb(samples_at(light, y, x), colours[0], colours[1], width, out);
    return 1;
}

static void free_baseline(struct baseline *jpeg) {
    free(jpeg->clean);
    free(jpeg->planes);
    free(jpeg->colours);
    free(jpeg->sums);
}

#endif
