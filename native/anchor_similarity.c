/* Largest correlation of every uint8 patch with the anchors of its image, on a CPU.

   The normalised value of v is y = s * v + t, with s and t for each channel. With x = v - 128 and,
   in channel c, the mean l of y and the sum S of x, two patches n and a have the centred product

       (y_n - mean).(y_a - mean) = sum over c of  s^2 * (x_n.x_a - S_n * S_a / pixels)
                                 + sum over c of  pixels * (l_n - mean of l_n) * (l_a - mean of l_a)

   x_n.x_a and S are sums of whole numbers, taken in whole numbers; only what is made of them is
   rounded, in double, so nothing cancels however flat a patch is. Compilers turn the sums of 16-bit
   products into one instruction for 16 of them (pmaddwd on x86-64).

   Legend: B images, N patches of an image, D values of a patch (y, x, channel), A anchors. */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define CHANNELS 3
#define ANCHORS 6  /* anchors multiplied at once */
#define PADDING 32 /* planes of int16 are multiples of this, and end in zeros */
#define FLAT 1e-8  /* squared length; one grey level in one value of 768 makes 2e-4 */

struct batch {
    const uint8_t *patches; /* [B, N, D] */
    const int64_t *anchors; /* [B, A] */
    int num_images, num_patches, num_values, num_anchors, plane;
    double scale[CHANNELS], shift[CHANNELS];
    float *similarity; /* [B, N] */
    atomic_int next;
    atomic_int failed;
};

struct moments {
    double sums[CHANNELS];   /* of x */
    double levels[CHANNELS]; /* means of y, less the mean of all of y */
    double length;           /* squared length of y about its mean */
};

/* What a patch is multiplied with to get its correlation with an anchor, times its own length. */
struct anchor {
    double squares[CHANNELS]; /* s^2 over the anchor's length */
    double means[CHANNELS];   /* of x */
    double levels[CHANNELS];  /* pixels * levels over the anchor's length */
};

/* The values of a patch less 128, channel by channel, and their moments. */
static struct moments moments_of(const struct batch *batch, const uint8_t *restrict patch,
                                 int16_t *restrict planes) {
    int pixels = batch->num_values / CHANNELS, plane = batch->plane;
    struct moments found = {.length = 0};
    double level = 0;
    for (int i = 0; i < pixels; i++) {
        planes[i] = (int16_t)(patch[3 * i] - 128);
        planes[plane + i] = (int16_t)(patch[3 * i + 1] - 128);
        planes[2 * plane + i] = (int16_t)(patch[3 * i + 2] - 128);
    }
    const int16_t *second = planes + plane, *third = second + plane;
    int32_t sums[CHANNELS] = {0}, squares[CHANNELS] = {0};
    for (int i = 0; i < plane; i++) { /* written out, or compilers add one by one */
        sums[0] += planes[i];
        sums[1] += second[i];
        sums[2] += third[i];
        squares[0] += planes[i] * planes[i];
        squares[1] += second[i] * second[i];
        squares[2] += third[i] * third[i];
    }
    for (int c = 0; c < CHANNELS; c++) {
        double scale = batch->scale[c], mean = (double)sums[c] / pixels;
        found.sums[c] = sums[c];
        found.levels[c] = scale * (mean + 128) + batch->shift[c];
        found.length += scale * scale * (squares[c] - sums[c] * mean);
        level += found.levels[c] / CHANNELS;
    }
    for (int c = 0; c < CHANNELS; c++) {
        found.levels[c] -= level;
        found.length += pixels * found.levels[c] * found.levels[c];
    }
    return found;
}

static struct anchor anchor_of(const struct batch *batch, const struct moments *about) {
    int pixels = batch->num_values / CHANNELS;
    double inverse = about->length > FLAT ? 1 / sqrt(about->length) : 0;
    struct anchor found;
    for (int c = 0; c < CHANNELS; c++) {
        found.squares[c] = batch->scale[c] * batch->scale[c] * inverse;
        found.means[c] = about->sums[c] / pixels;
        found.levels[c] = pixels * about->levels[c] * inverse;
    }
    return found;
}

/* Products of one plane of a patch with that of three anchors, which share what is read. */
static void products_of(const int16_t *restrict values, const int16_t *restrict anchors, int plane,
                        int32_t products[ANCHORS]) {
    size_t next = (size_t)CHANNELS * plane;
    int32_t sums[ANCHORS] = {0};
    for (int i = 0; i < plane; i++) {
        sums[0] += values[i] * anchors[i];
        sums[1] += values[i] * anchors[next + i];
        sums[2] += values[i] * anchors[2 * next + i];
        sums[3] += values[i] * anchors[3 * next + i];
        sums[4] += values[i] * anchors[4 * next + i];
        sums[5] += values[i] * anchors[5 * next + i];
    }
    memcpy(products, sums, sizeof sums);
}

/* Largest correlation of a patch with an anchor, times the patch's length. */
static double largest_of(const struct batch *batch, const int16_t *planes,
                         const struct moments *about, const int16_t *anchor_planes,
                         const struct anchor *anchors) {
    int plane = batch->plane;
    double largest = -INFINITY;
    for (int first = 0; first < batch->num_anchors; first += ANCHORS) {
        double found[ANCHORS] = {0};
        for (int c = 0; c < CHANNELS; c++) {
            int32_t products[ANCHORS];
            size_t start = ((size_t)first * CHANNELS + c) * plane;
            products_of(planes + c * plane, anchor_planes + start, plane, products);
            for (int k = 0; k < ANCHORS; k++) {
                const struct anchor *anchor = &anchors[first + k];
                found[k] += anchor->squares[c] * (products[k] - about->sums[c] * anchor->means[c]) +
                            anchor->levels[c] * about->levels[c];
            }
        }
        for (int k = 0; k < ANCHORS && first + k < batch->num_anchors; k++)
            if (found[k] > largest) largest = found[k];
    }
    return largest;
}

/* `planes` [3, plane] and `anchor_planes` [A, 3, plane] end in zeros, and stay so. */
static void similarity_of(struct batch *batch, int image, int16_t *planes, int16_t *anchor_planes,
                          struct anchor *anchors) {
    int num_values = batch->num_values;
    const uint8_t *patches = batch->patches + (size_t)image * batch->num_patches * num_values;
    const int64_t *places = batch->anchors + (size_t)image * batch->num_anchors;
    float *similarity = batch->similarity + (size_t)image * batch->num_patches;
    for (int k = 0; k < batch->num_anchors; k++) {
        int16_t *own = anchor_planes + (size_t)k * CHANNELS * batch->plane;
        struct moments about = moments_of(batch, patches + places[k] * num_values, own);
        anchors[k] = anchor_of(batch, &about);
    }
    for (int n = 0; n < batch->num_patches; n++) {
        struct moments about = moments_of(batch, patches + (size_t)n * num_values, planes);
        double value = 0;
        if (about.length > FLAT)
            value = largest_of(batch, planes, &about, anchor_planes, anchors) / sqrt(about.length);
        similarity[n] = (float)(value > 1 ? 1 : value < -1 ? -1 : value);
    }
    for (int k = 0; k < batch->num_anchors; k++) similarity[places[k]] = 1;
}

static void *work(void *argument) {
    struct batch *batch = argument;
    size_t num_anchors = (batch->num_anchors + ANCHORS - 1) / ANCHORS * ANCHORS;
    size_t num_planes = CHANNELS * (size_t)batch->plane;
    int16_t *planes = calloc(num_planes, sizeof *planes);
    int16_t *anchor_planes = calloc(num_anchors * num_planes, sizeof *anchor_planes);
    struct anchor *anchors = calloc(num_anchors, sizeof *anchors);
    if (planes && anchor_planes && anchors) {
        int image;
        while ((image = atomic_fetch_add(&batch->next, 1)) < batch->num_images)
            similarity_of(batch, image, planes, anchor_planes, anchors);
    } else {
        atomic_store(&batch->failed, 1);
    }
    free(planes);
    free(anchor_planes);
    free(anchors);
    return NULL;
}

int tessera_similarity(const uint8_t *patches, const int64_t *anchors, int num_images,
                       int num_patches, int num_values, int num_anchors, const double *scale,
                       const double *shift, int num_threads, float *similarity) {
    struct batch batch = {.patches = patches, .anchors = anchors, .num_images = num_images,
                          .num_patches = num_patches, .num_values = num_values,
                          .num_anchors = num_anchors, .similarity = similarity};
    batch.plane = (num_values / CHANNELS + PADDING - 1) / PADDING * PADDING;
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
