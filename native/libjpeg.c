#include "libjpeg.h"

#include <dlfcn.h>

struct libjpeg libjpeg;

const char *open_libjpeg(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return dlerror();
    const struct {
        const char *name;
        void *place;
    } functions[] = {
        {"jpeg_std_error", &libjpeg.std_error},
        {"jpeg_CreateDecompress", &libjpeg.create_decompress},
        {"jpeg_destroy_decompress", &libjpeg.destroy_decompress},
        {"jpeg_abort_decompress", &libjpeg.abort_decompress},
        {"jpeg_mem_src", &libjpeg.mem_src},
        {"jpeg_read_header", &libjpeg.read_header},
        {"jpeg_start_decompress", &libjpeg.start_decompress},
        {"jpeg_crop_scanline", &libjpeg.crop_scanline},
        {"jpeg_skip_scanlines", &libjpeg.skip_scanlines},
        {"jpeg_read_scanlines", &libjpeg.read_scanlines},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *found = dlsym(library, functions[i].name);
        if (!found) return dlerror();
        *(void **)functions[i].place = found;
    }
    return NULL;
}
