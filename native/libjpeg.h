/* The part of libjpeg's version 6.2 binary interface that jpeg_window.c uses.
 *
 * Pillow's wheels bring libjpeg-turbo without its headers, so they are not needed: the functions that
 * are called, and the layout of the structures as far as fields are touched, are declared here, and
 * the library is opened at run time. 64-bit systems only. A library of another layout refuses in
 * jpeg_CreateDecompress, which compares version and size. */
#ifndef TESSERA_LIBJPEG_H
#define TESSERA_LIBJPEG_H

#include <stddef.h>
#include <stdint.h>

struct jpeg_decompress;

enum { ABI_VERSION = 62, ABI_DECOMPRESS_SIZE = 632 };
enum { SPACE_GREY = 1, SPACE_RGB = 2, SPACE_YCC = 3 };

struct jpeg_error {
    void (*error_exit)(struct jpeg_decompress *);
    void (*emit_message)(struct jpeg_decompress *, int level);
    void (*output_message)(struct jpeg_decompress *);
    void (*format_message)(struct jpeg_decompress *, char *text);
    void (*reset)(struct jpeg_decompress *);
    int message_code;
    char parameters[80];
    int trace_level;
    long num_warnings;
    const char *const *messages;
    int last_message;
    const char *const *more_messages;
    int first_more_message, last_more_message;
};

struct jpeg_progress {
    void (*monitor)(struct jpeg_decompress *);
    long pass_counter, pass_limit;
    int completed_passes, total_passes;
};

struct jpeg_decompress {
    struct jpeg_error *error;
    void *memory;
    struct jpeg_progress *progress;
    void *client_data;
    int is_decompressor, global_state;
    void *source;
    unsigned image_width, image_height;
    int num_components, stored_space, output_space;
    unsigned scale_num, scale_denom;
    double output_gamma;
    int buffered_image, raw_data_out, dct_method, fancy_upsampling, block_smoothing;
    int quantize_colors, dither_mode, two_pass_quantize, desired_colors;
    int enable_1pass, enable_external, enable_2pass;
    unsigned output_width, output_height;
    int out_color_components, output_components, rows_at_once, actual_colors;
    void *colormap;
    unsigned output_scanline;
    int input_scan;
    char rest[ABI_DECOMPRESS_SIZE - 176];
};

_Static_assert(sizeof(void *) == 8 && sizeof(long) == 8, "64-bit systems only");
_Static_assert(sizeof(struct jpeg_decompress) == ABI_DECOMPRESS_SIZE, "layout");
_Static_assert(offsetof(struct jpeg_decompress, output_gamma) == 80, "layout");
_Static_assert(offsetof(struct jpeg_decompress, output_scanline) == 168, "layout");

struct libjpeg {
    struct jpeg_error *(*std_error)(struct jpeg_error *);
    void (*create_decompress)(struct jpeg_decompress *, int version, size_t size);
    void (*destroy_decompress)(struct jpeg_decompress *);
    void (*abort_decompress)(struct jpeg_decompress *);
    void (*mem_src)(struct jpeg_decompress *, const unsigned char *data, unsigned long size);
    int (*read_header)(struct jpeg_decompress *, int require_image);
    int (*start_decompress)(struct jpeg_decompress *);
    void (*crop_scanline)(struct jpeg_decompress *, unsigned *x, unsigned *width);
    unsigned (*skip_scanlines)(struct jpeg_decompress *, unsigned count);
    unsigned (*read_scanlines)(struct jpeg_decompress *, uint8_t **rows, unsigned count);
};

extern struct libjpeg libjpeg; /* filled by open_libjpeg */

/* Open the library at a path. Returns NULL, or what is wrong with it. */
const char *open_libjpeg(const char *path);

#endif
