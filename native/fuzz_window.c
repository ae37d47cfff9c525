/* Decodes windows of damaged JPEG files, to be run under the address and undefined-behaviour
 * sanitisers. Both decoders are run on each file, and where both succeed their pixels must be equal.
 *
 *     fuzz_window LIBJPEG ROUNDS SEED FILE...   damages files by its own rules, and prints how many
 *         the quick decoder decoded; of these, libjpeg-turbo refused; of the others, had numbers
 *         beyond 16 bits, which libjpeg-turbo cuts off otherwise; of the rest, differ in a pixel
 *
 * Compiled with -DLIBFUZZER it is a libFuzzer target, and $LIBJPEG names the library. README.md has
 * both commands. */
#include "avx2.h"

#include "samples.h"

static int extreme; /* numbers came up of which more than 16 bits may be needed on the way */

static void watch(const int16_t *block, const int16_t *quantiser, int count) {
    long sum = 0;
    for (int i = 0; i < count; i++) sum += labs((long)block[i] * quantiser[i]);
    extreme |= sum > 5000; /* the first pass makes at most 4 * 1.4 of it */
}

static void watched_dct(const int16_t *block, const int16_t *quantiser, uint8_t *out, size_t stride) {
    watch(block, quantiser, 64);
    inverse_dct(block, quantiser, out, stride);
}

static void watched_flat(int16_t first, int16_t quantiser, uint8_t *out, size_t stride) {
    watch(&first, &quantiser, 1);
    flat_block(first, quantiser, out, stride);
}

#define inverse_dct watched_dct
#define flat_block watched_flat
#include "jpeg_window.c"

enum { LARGEST_SIDE = 96, IMAGE = LARGEST_SIDE * LARGEST_SIDE * 3 };

static uint64_t state;

static unsigned drawn(unsigned limit) { /* xorshift; good enough for this */
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (unsigned)(state >> 33) % limit;
}

typedef int Decoder(struct worker *, const uint8_t *, size_t, const int32_t *, int, uint8_t *);

static int by_libjpeg(struct worker *worker, const uint8_t *data, size_t size,
                      const int32_t *window, int side, uint8_t *image) {
    decode_by_libjpeg(worker, data, size, window, side, image);
    return 1;
}

static int guarded(Decoder *decode, struct worker *worker, const uint8_t *data, size_t size,
                   const int32_t *window, int side, uint8_t *image) {
    if (setjmp(worker->failed) == 0) return decode(worker, data, size, window, side, image);
    libjpeg.abort_decompress(&worker->jpeg);
    return 0;
}

static struct worker worker;
static long decoded, refused, cut_off, different;

static int open_worker(const char *library) {
    static char reason[REASON_LENGTH];
    const char *wrong = open_libjpeg(library ? library : "libjpeg.so.62");
    if (wrong) return fprintf(stderr, "%s\n", wrong), 0;
    worker.reason = reason;
    return prepare(&worker, LARGEST_SIDE);
}

static void run_both(const uint8_t *data, size_t size, const int32_t *window, int side) {
    static uint8_t quick[IMAGE], reference[IMAGE];
    extreme = 0;
    int is_quick = guarded(decode_quickly, &worker, data, size, window, side, quick);
    int is_decoded = guarded(by_libjpeg, &worker, data, size, window, side, reference);
    if (!is_quick) return;
    decoded++;
    if (!is_decoded) {
        refused++;
#ifndef LIBFUZZER /* libFuzzer has the standard error for itself */
        fprintf(stderr, "libjpeg-turbo: %s\n", worker.reason);
#endif
    } else if (extreme) {
        cut_off++;
    } else {
        different += memcmp(quick, reference, 3 * (size_t)side * (size_t)side) != 0;
    }
}

static void run_drawn(const uint8_t *data, size_t size) {
    int side = 1 + (int)drawn(LARGEST_SIDE);
    int32_t window[4] = {(int)drawn(40), (int)drawn(40), 1 + (int)drawn(150), 1 + (int)drawn(150)};
    run_both(data, size, window, side);
}

#ifdef LIBFUZZER

int LLVMFuzzerInitialize(int *count, char ***values) {
    (void)count, (void)values;
    if (!open_worker(getenv("LIBJPEG"))) exit(1);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    state = 0x9E3779B97F4A7C15u; /* the window follows from the file, so that any JPEG is a seed */
    for (size_t at = 0; at < size; at++) state = (state ^ data[at]) * 0x100000001B3u;
    run_drawn(data, size);
    if (different) abort();
    return 0;
}

#else

static size_t scan_start(const uint8_t *data, size_t size) {
    for (size_t at = 0; at + 1 < size; at++)
        if (data[at] == 0xFF && data[at + 1] == 0xDA) return at;
    return size;
}

static size_t damaged(uint8_t *data, size_t size) {
    unsigned kind = drawn(6);
    size_t scan = scan_start(data, size);
    if (kind == 0) return size; /* as it is */
    if (kind == 1) return drawn((unsigned)size);
    size_t from = kind == 2 ? 2 : kind == 3 ? scan : 0, end = kind == 2 ? scan : size;
    if (from >= end) from = 0, end = size;
    for (unsigned n = 1 + drawn(kind == 4 ? 30 : 3); n; n--) {
        size_t at = from + drawn((unsigned)(end - from));
        if (kind == 5) data[at] = drawn(2) ? 0xFF : (uint8_t)drawn(256);
        else data[at] ^= (uint8_t)(1 << drawn(8));
    }
    return size;
}

static void *contents(const char *name, size_t *size) {
    FILE *file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END)) return NULL;
    *size = (size_t)ftell(file);
    rewind(file);
    void *data = malloc(*size);
    if (data && fread(data, 1, *size, file) != *size) return NULL;
    fclose(file);
    return data;
}

int main(int count, char **values) {
    if (count < 5 || !open_worker(values[1])) return 2;
    state = 0x9E3779B97F4A7C15u ^ (uint64_t)atol(values[3]);
    for (long round = 0; round < atol(values[2]); round++) {
        size_t size;
        uint8_t *whole = contents(values[4 + round % (count - 4)], &size);
        if (!whole) return 1;
        size = damaged(whole, size);
        uint8_t *data = malloc(size ? size : 1); /* no byte more, so that no read behind is missed */
        memcpy(data, whole, size);
        free(whole);
        run_drawn(data, size);
        free(data);
    }
    printf("%ld %ld %ld %ld\n", decoded, refused, cut_off, different);
    return 0;
}

#endif

#ifdef __clang__
#pragma clang attribute pop
#endif
