/* Windows of JPEG files to small square pictures, a batch in one call over several threads.
 *
 * Only the rows and columns of the window are decoded: the commonest files by baseline.h, all others
 * by libjpeg-turbo, which takes large pictures at 1/2, 1/4 or 1/8 of their size. Pillow's bicubic
 * filter takes the rest of the way. Damage ends one picture, never the process.
 *
 * Legend: S side of the output; a window is (y, x, height, width) in the upright picture. */
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef TESSERA_AVX2
#include "baseline.h"
#endif
#include "bicubic.h"
#include "libjpeg.h"
#include "native.h"

enum { EDGE = 2 };
enum { MAX_SCANS = 100, MAX_LEFT_OVER = 16 }; /* as in jpeg_walk.py and jpeg_damage.py */

typedef int32_t Window[4]; /* y, x, height, width */

struct worker {
    struct jpeg_decompress jpeg;
    struct jpeg_error error;
    struct jpeg_progress progress;
    jmp_buf failed;
    int status, past_header;
    char *reason;
    uint8_t *pixels, *square; /* window as decoded; output before it is turned */
    int16_t *row;
    size_t pixels_size, row_size;
    struct taps vertical, horizontal;
#ifdef TESSERA_AVX2
    struct baseline baseline;
#endif
};

struct batch {
    const uint8_t *const *data;
    const int64_t *sizes;
    const Window *windows;
    int count, side;
    uint8_t *images; /* [count, S, S, 3] */
    int32_t *status;
    char *reasons; /* [count, REASON_LENGTH] */
    atomic_int next;
};

static struct worker *worker_of(struct jpeg_decompress *jpeg) { return jpeg->client_data; }

static void stop(struct worker *worker, int status, const char *reason) {
    worker->status = status;
    snprintf(worker->reason, REASON_LENGTH, "%s", reason);
    longjmp(worker->failed, 1);
}

static void on_error(struct jpeg_decompress *jpeg) {
    char text[REASON_LENGTH];
    jpeg->error->format_message(jpeg, text);
    /* Not always damage: libjpeg also says so of what it cannot do, and another decoder may. */
    stop(worker_of(jpeg), UNSUPPORTED, text);
}

static void on_message(struct jpeg_decompress *jpeg, int level) {
    char text[REASON_LENGTH];
    if (level >= 0) return;
    jpeg->error->format_message(jpeg, text);
    if (strstr(text, "extraneous bytes")) {
        int count, marker;
        memcpy(&count, jpeg->error->parameters, sizeof count);
        memcpy(&marker, jpeg->error->parameters + sizeof count, sizeof marker);
        /* No pixel depends on those of the header, or on a few behind the last block. */
        if (!worker_of(jpeg)->past_header || (marker == 0xD9 && count <= MAX_LEFT_OVER)) return;
    }
    if (strncmp(text, "Corrupt", 7) == 0 || strncmp(text, "Premature", 9) == 0 ||
        strncmp(text, "Inconsistent", 12) == 0)
        stop(worker_of(jpeg), DAMAGED, text);
}

static void on_print(struct jpeg_decompress *jpeg) { (void)jpeg; }

static void on_progress(struct jpeg_decompress *jpeg) {
    double pixels = (double)jpeg->image_width * jpeg->image_height;
    if (jpeg->input_scan > MAX_SCANS || (jpeg->input_scan > 1 && jpeg->input_scan * pixels > 2e9))
        stop(worker_of(jpeg), DAMAGED, "the JPEG has too many scans");
}

static void *grown(struct worker *worker, void *buffer, size_t *size, size_t wanted) {
    if (wanted <= *size) return buffer;
    void *larger = realloc(buffer, wanted);
    if (!larger) stop(worker, DAMAGED, "not enough memory for the window");
    *size = wanted;
    return larger;
}

/* ---- What the header says -------------------------------------------------------------------- */

static unsigned number(const uint8_t *at, int bytes, int little) {
    unsigned value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | at[little ? bytes - 1 - i : i];
    return value;
}

/* As strict as exif_orientation in exif.py: one SHORT in the first directory. */
static int tiff_orientation(const uint8_t *tiff, size_t size) {
    if (size < 8) return 1;
    int little = memcmp(tiff, "II*\0", 4) == 0;
    if (!little && memcmp(tiff, "MM\0*", 4) != 0) return 1;
    size_t start = number(tiff + 4, 4, little);
    if (start + 2 > size) return 1;
    size_t end = start + 2 + 12 * (size_t)number(tiff + start, 2, little);
    for (size_t at = start + 2; at < end && at + 10 <= size; at += 12) {
        if (number(tiff + at, 2, little) != 0x0112) continue;
        unsigned value = number(tiff + at + 8, 2, little);
        int one_short = number(tiff + at + 2, 2, little) == 3 && number(tiff + at + 4, 4, little) == 1;
        return one_short && value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

struct header {
    int orientation; /* of the first EXIF block */
    int frame, precision;
};

/* Walk over the segments before the first scan as jpeg_walk.py does: bytes between are passed over. */
static struct header read_header(const uint8_t *data, size_t size) {
    struct header header = {.orientation = 1};
    int has_exif = 0;
    for (size_t at = 2; at + 4 <= size;) {
        unsigned marker = data[at + 1];
        int alone = marker <= 0x01 || marker == 0xFF || (marker >= 0xD0 && marker <= 0xD7);
        if (data[at] != 0xFF || alone) { at++; continue; }
        if (marker == 0xDA || marker == 0xD9) break;
        size_t length = number(data + at + 2, 2, 0);
        if (length < 2 || at + 2 + length > size) break;
        if (marker == 0xE1 && length >= 8 && memcmp(data + at + 4, "Exif\0\0", 6) == 0 && !has_exif) {
            has_exif = 1;
            header.orientation = tiff_orientation(data + at + 10, length - 8);
        }
        int is_frame = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
        if (is_frame && length >= 8 && !header.frame) {
            header.frame = (int)marker;
            header.precision = data[at + 4];
        }
        at += 2 + length;
    }
    return header;
}

/* Window of the upright picture to the one of the picture as stored. */
static void to_stored(const int32_t *upright, int turn, int height, int width, int32_t *stored) {
    int swapped = turn >= 5;
    for (int axis = 0; axis < 2; axis++) {
        stored[axis] = upright[axis ^ swapped];
        stored[2 + axis] = upright[2 + (axis ^ swapped)];
    }
    if (turn == 3 || turn == 4 || turn == 6 || turn == 7) stored[0] = height - stored[0] - stored[2];
    if (turn == 2 || turn == 3 || turn == 7 || turn == 8) stored[1] = width - stored[1] - stored[3];
}

static void turn_upright(const uint8_t *stored, int turn, int side, uint8_t *upright) {
    int last = side - 1;
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++, upright += 3) {
            int sy = turn >= 5 ? x : y, sx = turn >= 5 ? y : x;
            if (turn == 3 || turn == 4 || turn == 6 || turn == 7) sy = last - sy;
            if (turn == 2 || turn == 3 || turn == 7 || turn == 8) sx = last - sx;
            memcpy(upright, stored + 3 * ((size_t)sy * side + sx), 3);
        }
}

/* ---- One picture ------------------------------------------------------------------------- */

/* The smallest of 1/8, 1/4, 1/2 and 1 that leaves twice the pixels that are wanted, in eighths.
 * The scales between are slower than 1: libjpeg-turbo has no SIMD for them. With less than twice
 * the pixels the filter would have too little to work on to look like Pillow's. */
static unsigned scale_for(const int32_t *window, int side) {
    int least = window[2] < window[3] ? window[2] : window[3];
    unsigned scale = 1;
    while (scale < 8 && (long)least * scale < (long)side * 16) scale *= 2;
    return scale;
}

static int inside(const int32_t *window, unsigned height, unsigned width) {
    return window[0] >= 0 && window[1] >= 0 && window[2] >= 1 && window[3] >= 1 &&
           window[0] <= (int)height - window[2] && window[1] <= (int)width - window[3];
}

/* What is decoded of a picture, at the scale at which it is. */
struct part {
    unsigned top, left, rows, columns; /* pixels that the window touches */
    size_t stride, before;             /* bytes from row to row; in each row before the window */
    double y, x, height, width;        /* the window itself */
};

/* Decode rows to `pixels`, the next ones behind `have`. Returns how many; 0 to give up. */
typedef unsigned Reader(struct worker *worker, const struct part *part, unsigned have);

static unsigned read_by_libjpeg(struct worker *worker, const struct part *part, unsigned have) {
    uint8_t *rows[4];
    unsigned wanted = part->rows - have;
    for (unsigned i = 0; i < 4; i++) rows[i] = worker->pixels + part->stride * (have + i);
    return libjpeg.read_scanlines(&worker->jpeg, rows, wanted < 4 ? wanted : 4);
}

/* Resize a part to `square`, decoding as rows are needed. Returns 0 where the reader gave up. */
static int resize(struct worker *worker, const struct part *part, Reader *read, int side,
                  uint8_t *square) {
    worker->pixels = grown(worker, worker->pixels, &worker->pixels_size,
                           part->stride * part->rows + SLACK);
    worker->row = grown(worker, worker->row, &worker->row_size, 2 * (3 * part->columns + SLACK));
    struct taps *vertical = &worker->vertical, *horizontal = &worker->horizontal;
    if (!make_taps(vertical, side, part->y - part->top, part->height, (int)part->rows) ||
        !make_taps(horizontal, side, part->x - part->left, part->width, (int)part->columns))
        stop(worker, DAMAGED, "not enough memory for the weights");
    unsigned have = 0;
    for (int place = 0; place < side; place++) {
        unsigned need = vertical->first[place] + vertical->count[place];
        while (have < need) {
            unsigned got = read(worker, part, have);
            if (!got) return 0;
            have += got;
        }
        const uint8_t *first = worker->pixels + part->stride * vertical->first[place] + part->before;
        blend_rows(first, part->stride, vertical, place, 3 * (int)part->columns, worker->row);
        blend_columns(worker->row, horizontal, side, square + (size_t)place * side * 3);
    }
    return 1;
}

#ifdef TESSERA_AVX2

static unsigned read_by_baseline(struct worker *worker, const struct part *part, unsigned have) {
    return read_rgb_row(&worker->baseline, (int)(part->top + have), (int)part->left,
                        (int)part->columns, worker->pixels + part->stride * have);
}

/* The quick way; 0 where it does not lead to the end. It has no reduced scales. */
static int decode_quickly(struct worker *worker, const uint8_t *data, size_t size,
                          const int32_t *upright, int side, uint8_t *image) {
    struct baseline *jpeg = &worker->baseline;
    int32_t window[4];
    if (scale_for(upright, side) != 8 || !read_headers(jpeg, data, size)) return 0;
    int turn = read_header(data, size).orientation;
    to_stored(upright, turn, jpeg->height, jpeg->width, window);
    if (!inside(window, (unsigned)jpeg->height, (unsigned)jpeg->width)) return 0;
    if (!open_window(jpeg, window)) return 0;
    struct part part = {.top = (unsigned)window[0], .left = (unsigned)window[1],
                        .rows = (unsigned)window[2], .columns = (unsigned)window[3],
                        .stride = 3 * (size_t)window[3], .y = window[0], .x = window[1],
                        .height = window[2], .width = window[3]};
    uint8_t *square = turn == 1 ? image : worker->square;
    if (!resize(worker, &part, read_by_baseline, side, square)) return 0;
    if (turn != 1) turn_upright(square, turn, side, image);
    return 1;
}

#else

static int decode_quickly(struct worker *worker, const uint8_t *data, size_t size,
                          const int32_t *upright, int side, uint8_t *image) {
    (void)worker, (void)data, (void)size, (void)upright, (void)side, (void)image;
    return 0;
}

#endif

static void decode_by_libjpeg(struct worker *worker, const uint8_t *data, size_t size,
                              const int32_t *upright, int side, uint8_t *image) {
    struct jpeg_decompress *jpeg = &worker->jpeg;
    int32_t window[4];
    struct header header = read_header(data, size);
    if (size < 3 || data[2] != 0xFF || header.frame < 0xC0 || header.frame > 0xC2 || header.precision != 8)
        stop(worker, UNSUPPORTED, "not coded by Huffman with 8 bits");
    worker->past_header = 0;
    libjpeg.mem_src(jpeg, data, size);
    libjpeg.read_header(jpeg, 1);
    worker->past_header = 1;
    if (jpeg->stored_space < SPACE_GREY || jpeg->stored_space > SPACE_YCC)
        stop(worker, UNSUPPORTED, "neither grey nor RGB nor YCbCr");
    int turn = header.orientation;
    to_stored(upright, turn, (int)jpeg->image_height, (int)jpeg->image_width, window);
    if (!inside(window, jpeg->image_height, jpeg->image_width))
        stop(worker, DAMAGED, "the window lies outside of the picture");
    jpeg->output_space = SPACE_RGB;
    jpeg->scale_num = scale_for(window, side);
    jpeg->scale_denom = 8;
    libjpeg.start_decompress(jpeg);

    double scale = jpeg->scale_num / 8.0;
    struct part part = {.y = window[0] * scale, .x = window[1] * scale,
                        .height = window[2] * scale, .width = window[3] * scale};
    unsigned bottom = (unsigned)ceil(part.y + part.height), right = (unsigned)ceil(part.x + part.width);
    if (bottom > jpeg->output_height) bottom = jpeg->output_height;
    if (right > jpeg->output_width) right = jpeg->output_width;
    part.top = (unsigned)part.y;
    part.left = (unsigned)part.x;
    part.rows = bottom - part.top;
    part.columns = right - part.left;
    /* Colour upsampling looks at neighbours, so a little more than the window is decoded. */
    unsigned start = part.left > EDGE ? part.left - EDGE : 0;
    unsigned columns = (right + EDGE < jpeg->output_width ? right + EDGE : jpeg->output_width) - start;
    if (columns < jpeg->output_width) libjpeg.crop_scanline(jpeg, &start, &columns);
    part.stride = 3 * (size_t)columns;
    part.before = 3 * (size_t)(part.left - start);
    if (part.top) libjpeg.skip_scanlines(jpeg, part.top);

    uint8_t *square = turn == 1 ? image : worker->square;
    if (!resize(worker, &part, read_by_libjpeg, side, square))
        stop(worker, DAMAGED, "rows are missing");
    if (turn != 1) turn_upright(square, turn, side, image);
    libjpeg.abort_decompress(jpeg);
}

static void decode_one(struct worker *worker, struct batch *batch, int place) {
    size_t image = (size_t)batch->side * batch->side * 3;
    uint8_t *out = batch->images + image * place;
    worker->status = DECODED;
    worker->reason = batch->reasons + (size_t)REASON_LENGTH * place;
    if (setjmp(worker->failed) == 0) {
        const uint8_t *data = batch->data[place];
        size_t size = (size_t)batch->sizes[place];
        if (!decode_quickly(worker, data, size, batch->windows[place], batch->side, out))
            decode_by_libjpeg(worker, data, size, batch->windows[place], batch->side, out);
    } else {
        libjpeg.abort_decompress(&worker->jpeg);
        memset(out, 0, image);
    }
    batch->status[place] = worker->status;
}

/* Returns 0 where memory is out; a library of another version ends in on_error. */
static int prepare(struct worker *worker, int side) {
    worker->square = malloc((size_t)side * side * 3);
    if (!worker->square) return 0;
    worker->jpeg.error = libjpeg.std_error(&worker->error);
    worker->error.error_exit = on_error;
    worker->error.emit_message = on_message;
    worker->error.output_message = on_print;
    worker->progress.monitor = on_progress;
    worker->jpeg.client_data = worker;
    libjpeg.create_decompress(&worker->jpeg, ABI_VERSION, sizeof worker->jpeg);
    worker->jpeg.progress = &worker->progress;
    return 1;
}

static void *work(void *argument) {
    struct batch *batch = argument;
    struct worker *worker = aligned_alloc(_Alignof(struct worker), sizeof *worker);
    char reason[REASON_LENGTH];
    if (!worker) return NULL;
    memset(worker, 0, sizeof *worker);
    worker->reason = reason;
    if (setjmp(worker->failed) == 0 && prepare(worker, batch->side)) {
        int place;
        while ((place = atomic_fetch_add(&batch->next, 1)) < batch->count)
            decode_one(worker, batch, place);
        libjpeg.destroy_decompress(&worker->jpeg);
    }
#ifdef TESSERA_AVX2
    free_baseline(&worker->baseline);
#endif
    free(worker->vertical.weights);
    free(worker->horizontal.weights);
    free(worker->pixels);
    free(worker->row);
    free(worker->square);
    free(worker);
    return NULL;
}

void tessera_decode(const uint8_t *const *data, const int64_t *sizes, const int32_t *windows,
                    int count, int side, int num_threads, uint8_t *images, int32_t *status,
                    char *reasons) {
    struct batch batch = {.data = data, .sizes = sizes, .windows = (const Window *)windows,
                          .count = count, .side = side, .images = images, .status = status,
                          .reasons = reasons};
    pthread_t threads[num_threads];
    int started = 0;
    while (started < num_threads - 1 && started < count - 1 &&
           pthread_create(&threads[started], NULL, work, &batch) == 0)
        started++;
    work(&batch);
    while (started) pthread_join(threads[--started], NULL);
}
