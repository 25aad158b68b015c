/* SPDX-License-Identifier: MIT
 * The CUDA backend's device, its kernels, and launching them. */
#ifndef CMOE_BACKENDS_CUDA_CUDA_H
#define CMOE_BACKENDS_CUDA_CUDA_H

#include "backends/backend.h"
#include "backends/cuda/driver.h"
#include "backends/cuda/params.h"

enum cmoe_cuda_file {
#define FILE_ROW(stem) CMOE_CUDA_FILE_##stem,
#include "backends/cuda/functions.def"
#undef FILE_ROW
    CMOE_CUDA_FILES,
};

enum cmoe_cuda_function {
#define FUNCTION(stem, name) CMOE_CUDA_##name,
#include "backends/cuda/functions.def"
#undef FUNCTION
    CMOE_CUDA_FUNCTIONS,
};

/* Embedded fatbins and their kernels, in the order of the enumerations. */
struct cmoe_cuda_file_entry {
    const char *stem;
    const unsigned char *image;
};
struct cmoe_cuda_function_entry {
    const char *name;
    enum cmoe_cuda_file file;
};
extern const struct cmoe_cuda_file_entry cmoe__cuda_files[CMOE_CUDA_FILES];
extern const struct cmoe_cuda_function_entry cmoe__cuda_functions[CMOE_CUDA_FUNCTIONS];

/* What cmoe_device.state points at. */
struct cmoe_cuda {
    const struct cmoe_driver *driver;
    CUdevice device;
    CUcontext context; /* the primary one: pointers and streams of the runtime API are valid */
    CUlibrary library[CMOE_CUDA_FILES];
    CUfunction function[CMOE_CUDA_FUNCTIONS];
    int multiprocessors, shared_limit; /* bytes a block may opt in to */
    int arch; /* 90: compute capability 9.0; cmoe__cuda_load may lower it */
    /* Blocks of the largest cluster that sorts, and that routes and sorts: 8 or 16. */
    int sort_cluster, route_cluster;
    int slice_clusters; /* that run at once, of the kernels of slices.c */
};

/* Where one half of every expert lies, when that is what a tensor map can say: rows at a stride, experts
 * at another, both multiples of 16 bytes. */
struct cmoe_cuda_half {
    const void *data; /* of expert 0 */
    int64_t row_stride, expert_stride;
    bool strided;
    /* Of expert 0; `all_strided`: scales and biases lie at a distance from expert to expert too, bytes. */
    cmoe_gpu_half first;
    int64_t scale_stride, bias_stride;
    bool all_strided;
};

/* What cmoe_weights.state points at. */
struct cmoe_cuda_weights {
    struct cmoe_cuda_half half[3]; /* gate, up, down */
    cmoe_gpu_expert *experts;      /* device memory */
    bool vectors;                  /* every row starts at 16 bytes and columns are contiguous */
    bool contiguous;               /* columns are contiguous */
};

/* Load every embedded fatbin that the GPU can run and find its kernels; the context is current. On a Hopper
 * GPU whose driver takes no machine code (CUDA_FORCE_PTX_JIT=1) `arch` becomes 80. */
cmoe_status cmoe__cuda_load(struct cmoe_cuda *cuda);
void cmoe__cuda_unload(struct cmoe_cuda *cuda);

struct cmoe_cuda_grid {
    unsigned x, y; /* blocks; 0: nothing is launched */
    unsigned threads;
    size_t shared; /* dynamic bytes */
};
/* Launch on the exec's stream. args: as cuLaunchKernel's. after: a kernel that itself waits for the one
 * before it (common/depend.cuh) and may start before that one ends. */
cmoe_status cmoe__cuda_launch(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                              struct cmoe_cuda_grid grid, void **args);
cmoe_status cmoe__cuda_launch_after(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                                    struct cmoe_cuda_grid grid, void **args);

/* The same in clusters of that many blocks, which divides grid.x. */
cmoe_status cmoe__cuda_launch_clusters(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                                       struct cmoe_cuda_grid grid, unsigned cluster, void **args);

/* The part of the parameters that every kernel has, and what some have. */
cmoe_gpu_call cmoe__cuda_call(const struct cmoe_exec *x);
cmoe_gpu_combine cmoe__cuda_combine_params(const struct cmoe_exec *x);
cmoe_gpu_quant cmoe__cuda_quant_params(const struct cmoe_exec *x);
cmoe_gpu_gemm cmoe__cuda_gemm1_params(const struct cmoe_exec *x);
cmoe_gpu_gemm cmoe__cuda_gemm2_params(const struct cmoe_exec *x);

static inline const struct cmoe_cuda *cmoe__cuda_of(const struct cmoe_exec *x)
{
    return x->dev->state;
}

/* Stages: the `run` of their rows. */
cmoe_status cmoe__cuda_quant(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_quant_e4m3(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_gemm1(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_act(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_requant(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_requant_e4m3(const struct cmoe_step *step, const struct cmoe_exec *x);
/* Of an h that is stored in bf16, or in f32 and rounded to bf16 first. */
cmoe_status cmoe__cuda_requant_bf16(const struct cmoe_exec *x, bool stored);
cmoe_status cmoe__cuda_gemm2(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_combine(const struct cmoe_step *step, const struct cmoe_exec *x);
cmoe_status cmoe__cuda_combine_pairs(const struct cmoe_step *step, const struct cmoe_exec *x);
/* Zeros for tokens of one slot that is not computed here, where GEMM2 has written y. */
cmoe_status cmoe__cuda_combine_absent(const struct cmoe_exec *x);

/* Before the first and after the last step: 64-bit ids, cleared ends; expert loads. */
cmoe_status cmoe__cuda_prologue(const struct cmoe_exec *x);
cmoe_status cmoe__cuda_epilogue(const struct cmoe_exec *x);

/* Ceilings. */
cmoe_status cmoe__cuda_measure(cmoe_device *dev, cmoe_probe what, cmoe_dtype dtype,
                               const void *memory, size_t bytes, double *rate);

/* Streams, events and graphs. */
extern const struct cmoe_stream_table cmoe__cuda_streams;

/* Device tables of a weights object. */
cmoe_status cmoe__cuda_weights_open(cmoe_device *dev, cmoe_weights *w);
void cmoe__cuda_weights_close(cmoe_weights *w);

/* Configuration of a GEMM row. */
struct cmoe_cuda_gemm_config {
    int rows; /* of a block's tile; 0: the SIMT kernel */
};
/* The tensor-core kernel for x and w in tiles of `rows`, or CMOE_CUDA_FUNCTIONS. */
enum cmoe_cuda_function cmoe__cuda_mma(cmoe_format x, cmoe_format w, int rows);

#endif
