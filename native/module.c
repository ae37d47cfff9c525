/* tessera._native: the compiled parts of the pipeline for Python. Arrays come as buffers. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "libjpeg.h"
#include "native.h"

enum { MOST_THREADS = 256, MOST_SIDE = 1 << 14 };

static int has_avx2(void) {
#ifdef __x86_64__
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

#ifndef __x86_64__
#define tessera_decode_avx2 tessera_decode
#define tessera_similarity_avx2 tessera_similarity
#endif

static PyObject *open_library(PyObject *module, PyObject *args) {
    const char *path, *reason;
    (void)module;
    if (!PyArg_ParseTuple(args, "s:open_libjpeg", &path)) return NULL;
    reason = open_libjpeg(path);
    if (reason) return PyErr_Format(PyExc_OSError, "%s", reason);
    Py_RETURN_NONE;
}

/* [(place, damaged, reason)] of the files that were not decoded. */
static PyObject *failures_of(const int32_t *status, const char *reasons, int count) {
    PyObject *failures = PyList_New(0);
    for (int place = 0; failures && place < count; place++) {
        if (status[place] == DECODED) continue;
        const char *reason = reasons + (size_t)REASON_LENGTH * place;
        PyObject *text = PyUnicode_DecodeUTF8(reason, (Py_ssize_t)strlen(reason), "replace");
        PyObject *damaged = PyBool_FromLong(status[place] == DAMAGED);
        PyObject *failure = text ? Py_BuildValue("(iOO)", place, damaged, text) : NULL;
        Py_DecRef(text);
        Py_DecRef(damaged);
        if (!failure || PyList_Append(failures, failure)) Py_CLEAR(failures);
        Py_DecRef(failure);
    }
    return failures;
}

static PyObject *decode_files(PyObject *files, const int32_t *windows, uint8_t *images, int side,
                              int num_threads) {
    int count = (int)PyTuple_Size(files);
    size_t room = (size_t)count + 1;
    const uint8_t **data = malloc(room * sizeof *data);
    int64_t *sizes = malloc(room * sizeof *sizes);
    int32_t *status = malloc(room * sizeof *status);
    char *reasons = calloc(room, REASON_LENGTH);
    PyObject *failures = NULL;
    if (!data || !sizes || !status || !reasons) {
        PyErr_NoMemory();
        goto end;
    }
    for (int place = 0; place < count; place++) {
        char *bytes;
        Py_ssize_t size;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(files, place), &bytes, &size)) goto end;
        data[place] = (const uint8_t *)bytes;
        sizes[place] = size;
        status[place] = UNSUPPORTED;
    }
    Decode *decode = has_avx2() ? tessera_decode_avx2 : tessera_decode;
    Py_BEGIN_ALLOW_THREADS
    decode(data, sizes, windows, count, side, num_threads, images, status, reasons);
    Py_END_ALLOW_THREADS
    failures = failures_of(status, reasons, count);
end:
    free(data);
    free(sizes);
    free(status);
    free(reasons);
    return failures;
}

static PyObject *decode(PyObject *module, PyObject *args) {
    PyObject *files, *failures = NULL;
    Py_buffer windows, images;
    int side, num_threads;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!y*w*ii:decode", &PyTuple_Type, &files, &windows, &images, &side,
                          &num_threads))
        return NULL;
    Py_ssize_t count = PyTuple_Size(files);
    if (side < 1 || side > MOST_SIDE || num_threads < 1 || num_threads > MOST_THREADS)
        PyErr_SetString(PyExc_ValueError, "1 to 16384 pixels, on 1 to 256 threads");
    else if (!libjpeg.create_decompress)
        PyErr_SetString(PyExc_ValueError, "call open_libjpeg first");
    else if (count > INT32_MAX || windows.len != count * 4 * (Py_ssize_t)sizeof(int32_t) ||
             images.len != count * side * side * 3)
        PyErr_SetString(PyExc_ValueError, "windows are [B, 4] int32, images [B, S, S, 3] uint8");
    else
        failures = decode_files(files, windows.buf, images.buf, side, num_threads);
    PyBuffer_Release(&windows);
    PyBuffer_Release(&images);
    return failures;
}

/* Whether every anchor is a place of a patch: it says where a similarity is written. */
static int are_places(const int64_t *anchors, Py_ssize_t count, int num_patches) {
    for (Py_ssize_t i = 0; i < count; i++)
        if (anchors[i] < 0 || anchors[i] >= num_patches) return 0;
    return 1;
}

static PyObject *similarity(PyObject *module, PyObject *args) {
    Py_buffer patches, anchors, found;
    int num_images, num_patches, num_values, num_anchors, num_threads, failed = -1;
    double scale[3], shift[3];
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*w*(iiii)(ddd)(ddd)i:similarity", &patches, &anchors, &found,
                          &num_images, &num_patches, &num_values, &num_anchors, scale, scale + 1,
                          scale + 2, shift, shift + 1, shift + 2, &num_threads))
        return NULL;
    Py_ssize_t num_all = (Py_ssize_t)num_images * num_patches;
    Py_ssize_t num_places = (Py_ssize_t)num_images * num_anchors;
    if (num_images < 0 || num_patches < 0 || num_anchors < 0 || num_values < 3 || num_values % 3 ||
        num_threads < 1 || num_threads > MOST_THREADS ||
        patches.len != num_all * num_values ||
        anchors.len != num_places * (Py_ssize_t)sizeof(int64_t) ||
        found.len != num_all * (Py_ssize_t)sizeof(float) ||
        !are_places(anchors.buf, num_places, num_patches)) {
        PyErr_SetString(PyExc_ValueError, "patches, anchors and similarities do not fit together");
    } else {
        Similarity *fill = has_avx2() ? tessera_similarity_avx2 : tessera_similarity;
        Py_BEGIN_ALLOW_THREADS
        failed = fill(patches.buf, anchors.buf, num_images, num_patches, num_values, num_anchors,
                      scale, shift, num_threads, found.buf);
        Py_END_ALLOW_THREADS
        if (failed) PyErr_NoMemory();
    }
    PyBuffer_Release(&patches);
    PyBuffer_Release(&anchors);
    PyBuffer_Release(&found);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"open_libjpeg", open_library, METH_VARARGS, "open_libjpeg(path): decode with this library."},
    {"decode", decode, METH_VARARGS,
     "decode(files, windows, images, side, threads) -> [(place, damaged, reason)] of failures."},
    {"similarity", similarity, METH_VARARGS,
     "similarity(patches, anchors, found, (B, N, D, A), scale, shift, threads): fill `found`."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = 0, .m_methods = functions,
    .m_doc = "JPEG windows and anchor similarity, compiled; native/README.md.",
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
