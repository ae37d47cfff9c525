/* Largest correlation of every uint8 patch with the anchors of its image, on a CPU.

   With y = s * v + t the normalised pixels (s, t for each channel) and u an anchor that is centred
   and of length 1, so that it sums to 0:

       u.y = sum of u * s * (v - 128)  +  sum over channels of (128 * s + t) * (sum of u there)

   The second sum belongs to the anchor alone. The length of y about its mean comes from exact sums
   of v - 128 and its square in each channel, and is put together in double, so nothing cancels,
   however flat a patch is.

   Legend: B images, N patches of an image, D values of a patch (y, x, channel), A anchors. */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Wider ones were slower where they exist. */
#if defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float Floats __attribute__((vector_size(4 * WIDTH)));
#define LANES 48 /* a multiple of 3 and of WIDTH, so that a lane is always of the same channel */
#define PARTS (LANES / WIDTH)
#define PATCHES 2  /* patches multiplied at once */
#define ANCHORS 3  /* anchors multiplied at once */
#define PADDING 64 /* rows of floats are multiples of this, and begin where vectors may */
#define FLAT 1e-8 /* squared length; one grey level in one value of 768 makes 2e-4 */

struct batch {
    const uint8_t *patches; /* [B, N, D] */
    const int64_t *anchors; /* [B, A] */
    int num_images, num_patches, num_values, num_anchors, padded;
    double scale[3], shift[3];
    float *similarity; /* [B, N] */
    atomic_int next;
    atomic_int failed;
};

struct moments {
    double level;  /* mean of y over all values */
    double length; /* squared length of y about that mean */
};

/* Moments of a patch, and its values less 128 as floats in `row`. All sums are whole numbers below
   2^24, so float holds them exactly (D up to 49,152, patches of 128 x 128). */
static struct moments moments_of(const struct batch *batch, const uint8_t *patch, float *row) {
    int num_values = batch->num_values, whole = num_values / LANES * LANES;
    for (int d = 0; d < num_values; d++) row[d] = (float)patch[d] - 128;
    Floats sum[PARTS] = {0}, square[PARTS] = {0};
    for (int d = 0; d < whole; d += LANES)
        for (int part = 0; part < PARTS; part++) {
            Floats values = *(const Floats *)(row + d + WIDTH * part);
            sum[part] += values;
            square[part] += values * values;
        }
    float sums[LANES], squares[LANES];
    memcpy(sums, sum, sizeof sums);
    memcpy(squares, square, sizeof squares);
    for (int d = whole; d < num_values; d++) {
        sums[d - whole] += row[d];
        squares[d - whole] += row[d] * row[d];
    }
    for (int half = LANES / 2; half >= 3; half /= 2)
        for (int lane = 0; lane < half; lane++) {
            sums[lane] += sums[lane + half];
            squares[lane] += squares[lane + half];
        }
    struct moments found = {0, 0};
    double pixels = num_values / 3, levels[3];
    for (int c = 0; c < 3; c++) {
        double scale = batch->scale[c], mean = sums[c] / pixels;
        levels[c] = scale * (mean + 128) + batch->shift[c];
        found.level += levels[c] / 3;
        found.length += scale * scale * (squares[c] - sums[c] * mean);
    }
    for (int c = 0; c < 3; c++)
        found.length += pixels * (levels[c] - found.level) * (levels[c] - found.level);
    return found;
}

/* Products of two patches with three anchors, which share what is read. */
static void products_of(const float *rows, const float *units, int padded,
                        float products[PATCHES][ANCHORS]) {
    Floats sums[PATCHES][ANCHORS] = {0};
    for (int d = 0; d < padded; d += WIDTH)
        for (int k = 0; k < ANCHORS; k++) {
            Floats unit = *(const Floats *)(units + (size_t)k * padded + d);
            for (int n = 0; n < PATCHES; n++)
                sums[n][k] += *(const Floats *)(rows + (size_t)n * padded + d) * unit;
        }
    for (int n = 0; n < PATCHES; n++)
        for (int k = 0; k < ANCHORS; k++) {
            float lanes[WIDTH];
            memcpy(lanes, &sums[n][k], sizeof lanes);
            for (int half = WIDTH / 2; half; half /= 2)
                for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
            products[n][k] = lanes[0];
        }
}

/* `units` [A, padded] and `constants` [A] are filled on the way; `rows` [PATCHES, padded] end in
   zeros. */
static void similarity_of(struct batch *batch, int image, float *units, float *constants,
                          float *rows) {
    int num_values = batch->num_values, padded = batch->padded;
    const uint8_t *patches = batch->patches + (size_t)image * batch->num_patches * num_values;
    const int64_t *anchors = batch->anchors + (size_t)image * batch->num_anchors;
    float *similarity = batch->similarity + (size_t)image * batch->num_patches;

    for (int k = 0; k < batch->num_anchors; k++) {
        struct moments about = moments_of(batch, patches + anchors[k] * num_values, rows);
        double inverse = about.length > FLAT ? 1 / sqrt(about.length) : 0;
        double sums[3] = {0};
        for (int d = 0, c = 0; d < num_values; d++, c = c == 2 ? 0 : c + 1) {
            double scale = batch->scale[c];
            double value = (scale * (rows[d] + 128) + batch->shift[c] - about.level) * inverse;
            sums[c] += value;
            units[(size_t)k * padded + d] = (float)(value * scale);
        }
        constants[k] = 0;
        for (int c = 0; c < 3; c++)
            constants[k] += (float)((128 * batch->scale[c] + batch->shift[c]) * sums[c]);
    }
    for (int first = 0; first < batch->num_patches; first += PATCHES) {
        int count = batch->num_patches - first < PATCHES ? batch->num_patches - first : PATCHES;
        double lengths[PATCHES];
        float largest[PATCHES];
        for (int n = 0; n < count; n++) {
            const uint8_t *patch = patches + (size_t)(first + n) * num_values;
            lengths[n] = moments_of(batch, patch, rows + (size_t)n * padded).length;
            largest[n] = -INFINITY;
        }
        for (int k = 0; k < batch->num_anchors; k += ANCHORS) {
            float products[PATCHES][ANCHORS];
            products_of(rows, units + (size_t)k * padded, padded, products);
            for (int n = 0; n < count; n++)
                for (int i = 0; i < ANCHORS; i++) {
                    float product = products[n][i] + constants[k + i];
                    if (product > largest[n]) largest[n] = product;
                }
        }
        for (int n = 0; n < count; n++) {
            float value = lengths[n] > FLAT ? largest[n] / sqrtf((float)lengths[n]) : 0;
            similarity[first + n] = value > 1 ? 1 : value < -1 ? -1 : value;
        }
    }
    for (int k = 0; k < batch->num_anchors; k++) similarity[anchors[k]] = 1;
}

/* Floats that vectors may be read from, a multiple of PADDING of them. */
static float *zeros(size_t count) {
    float *values = aligned_alloc(PADDING, count * sizeof *values);
    if (values) memset(values, 0, count * sizeof *values);
    return values;
}

static void *work(void *argument) {
    struct batch *batch = argument;
    /* What fills the last group up must not be the largest. */
    int num_units = (batch->num_anchors + ANCHORS - 1) / ANCHORS * ANCHORS;
    float *units = zeros((size_t)num_units * batch->padded);
    float *rows = zeros((size_t)PATCHES * batch->padded);
    float *constants = malloc(num_units * sizeof *constants);
    for (int k = 0; constants && k < num_units; k++) constants[k] = -INFINITY;
    if (units && rows && constants) {
        int image;
        while ((image = atomic_fetch_add(&batch->next, 1)) < batch->num_images)
            similarity_of(batch, image, units, constants, rows);
    } else {
        atomic_store(&batch->failed, 1);
    }
    free(units);
    free(rows);
    free(constants);
    return NULL;
}

/* Fill `similarity`; the calling thread works too. Returns 0, or 1 where memory ran out. */
int tessera_similarity(const uint8_t *patches, const int64_t *anchors, int num_images,
                       int num_patches, int num_values, int num_anchors, const double *scale,
                       const double *shift, int num_threads, float *similarity) {
    struct batch batch = {.patches = patches, .anchors = anchors, .num_images = num_images,
                          .num_patches = num_patches, .num_values = num_values,
                          .num_anchors = num_anchors, .similarity = similarity};
    batch.padded = (num_values + PADDING - 1) / PADDING * PADDING;
    memcpy(batch.scale, scale, sizeof batch.scale);
    memcpy(batch.shift, shift, sizeof batch.shift);
    pthread_t threads[num_threads];
    int started = 0;
    while (started < num_threads - 1 && started < num_images - 1 &&
           pthread_create(&threads[started], NULL, work, &batch) == 0)
        started++;
    work(&batch);
    while (started) pthread_join(threads[--started], NULL);
    return atomic_load(&batch.failed);
}
