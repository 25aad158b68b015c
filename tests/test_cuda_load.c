/* SPDX-License-Identifier: MIT
 * Loading the embedded kernels through a driver that is made here: what a Hopper GPU runs, and what is
 * left of it when the driver takes PTX alone. */
#include "backends/cuda/cuda.h"
#include "harness.h"

#include <string.h>

/* The driver: a library is the image that it was loaded from, a function its library. */
enum refusal { AT_LOAD, AT_KERNEL, AT_FUNCTION, NEVER };
static struct {
    enum refusal hopper, portable; /* where files of either kind are refused */
    CUresult with;
    int loaded, unloaded, hopper_loaded;
} fake;

static bool is_hopper(const void *image)
{
    for (int f = 0; f < CMOE_CUDA_FILES; f++)
        if (cmoe__cuda_files[f].image == image)
            return strstr(cmoe__cuda_files[f].stem, "_sm90a") != NULL;
    fail_msg("an image that is no file's");
    return false;
}

static CUresult answer(const void *image, enum refusal at)
{
    return (is_hopper(image) ? fake.hopper : fake.portable) == at ? fake.with : CUDA_SUCCESS;
}

static CUresult load_data(CUlibrary *library, const void *image, CUjit_option *jit, void **values,
                          unsigned n_jit, CUlibraryOption *options, void **option_values,
                          unsigned n_options)
{
    (void)jit, (void)values, (void)n_jit, (void)options, (void)option_values, (void)n_options;
    const CUresult result = answer(image, AT_LOAD);
    if (result != CUDA_SUCCESS) return result;
    memcpy(library, &image, sizeof image);
    fake.loaded++;
    fake.hopper_loaded += is_hopper(image);
    return CUDA_SUCCESS;
}

static CUresult unload(CUlibrary library)
{
    fake.unloaded++;
    fake.hopper_loaded -= is_hopper(library);
    return CUDA_SUCCESS;
}

static CUresult get_kernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    bool known = false;
    for (int i = 0; i < CMOE_CUDA_FUNCTIONS; i++)
        known |= (const void *)cmoe__cuda_files[cmoe__cuda_functions[i].file].image ==
                     (const void *)library &&
                 strcmp(cmoe__cuda_functions[i].name, name) == 0;
    assert_true(known);
    memcpy(kernel, &library, sizeof library);
    return answer(library, AT_KERNEL);
}

static CUresult get_function(CUfunction *function, CUkernel kernel)
{
    memcpy(function, &kernel, sizeof kernel);
    return answer(kernel, AT_FUNCTION);
}

static CUresult get_attribute(int *value, CUfunction_attribute which, CUfunction function)
{
    (void)which, (void)function;
    *value = 0;
    return CUDA_SUCCESS;
}

static CUresult set_attribute(CUfunction function, CUfunction_attribute which, int value)
{
    (void)function, (void)which, (void)value;
    return CUDA_SUCCESS;
}

static CUresult active_clusters(int *n, CUfunction function, const CUlaunchConfig *config)
{
    (void)function, (void)config;
    *n = 1;
    return CUDA_SUCCESS;
}

static CUresult error_name(CUresult result, const char **name)
{
    *name = result == CUDA_ERROR_INVALID_IMAGE ? "INVALID_IMAGE" : "NO_BINARY_FOR_GPU";
    return CUDA_SUCCESS;
}

static const struct cmoe_driver driver = {
    .cuGetErrorName = error_name,
    .cuLibraryLoadData = load_data,
    .cuLibraryUnload = unload,
    .cuLibraryGetKernel = get_kernel,
    .cuKernelGetFunction = get_function,
    .cuFuncGetAttribute = get_attribute,
    .cuFuncSetAttribute = set_attribute,
    .cuOccupancyMaxActiveClusters = active_clusters,
};

static struct cmoe_cuda gpu(int arch, enum refusal hopper, CUresult with)
{
    memset(&fake, 0, sizeof fake);
    fake.hopper = hopper, fake.portable = NEVER, fake.with = with;
    return (struct cmoe_cuda){.driver = &driver, .arch = arch, .shared_limit = 1000};
}

static int functions_of(const struct cmoe_cuda *cuda, bool hopper)
{
    int n = 0;
    for (int i = 0; i < CMOE_CUDA_FUNCTIONS; i++)
        n += cuda->function[i] &&
             is_hopper(cmoe__cuda_files[cmoe__cuda_functions[i].file].image) == hopper;
    return n;
}

static void unload_all(struct cmoe_cuda *cuda)
{
    cmoe__cuda_unload(cuda);
    assert_int_equal(fake.loaded, fake.unloaded);
}

static void a_hopper_gpu_has_every_kernel(void **state)
{
    (void)state;
    struct cmoe_cuda cuda = gpu(90, NEVER, CUDA_SUCCESS);
    expect_ok(cmoe__cuda_load(&cuda));
    assert_int_equal(cuda.arch, 90);
    const int hopper = functions_of(&cuda, true), portable = functions_of(&cuda, false);
    assert_true(hopper > 0 && portable > 0 && hopper + portable == CMOE_CUDA_FUNCTIONS);
    assert_int_equal(cuda.sort_cluster, 16);
    unload_all(&cuda);
}

static void without_machine_code_it_is_a_portable_gpu(void **state)
{
    (void)state;
    struct cmoe_cuda ampere = gpu(80, NEVER, CUDA_SUCCESS);
    expect_ok(cmoe__cuda_load(&ampere));
    const int portable = functions_of(&ampere, false);
    unload_all(&ampere);
    for (enum refusal at = AT_LOAD; at < NEVER;
         at++) { /* drivers that load early, late, later still */
        struct cmoe_cuda cuda = gpu(90, at, CUDA_ERROR_NO_BINARY_FOR_GPU);
        expect_ok(cmoe__cuda_load(&cuda));
        assert_int_equal(cuda.arch, 80);
        assert_int_equal(functions_of(&cuda, true), 0);
        assert_int_equal(functions_of(&cuda, false), portable);
        assert_int_equal(fake.hopper_loaded, 0);
        assert_int_equal(cuda.sort_cluster, 8);
        unload_all(&cuda);
    }
}

static void other_refusals_are_errors(void **state)
{
    (void)state;
    for (enum refusal at = AT_LOAD; at < NEVER; at++) {
        struct cmoe_cuda cuda = gpu(90, at, CUDA_ERROR_INVALID_IMAGE);
        expect_error(cmoe__cuda_load(&cuda), CMOE_ERR_DEVICE, "INVALID_IMAGE");
        unload_all(&cuda);
        cuda = gpu(90, NEVER, CUDA_ERROR_NO_BINARY_FOR_GPU); /* no PTX of the portable files */
        fake.portable = at;
        expect_error(cmoe__cuda_load(&cuda), CMOE_ERR_DEVICE, "NO_BINARY_FOR_GPU");
        unload_all(&cuda);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hopper_gpu_has_every_kernel),
        cmocka_unit_test(without_machine_code_it_is_a_portable_gpu),
        cmocka_unit_test(other_refusals_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
