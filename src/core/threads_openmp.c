/* SPDX-License-Identifier: MIT
 * Finding libgomp, libomp or libiomp5 in the process and calling it through GOMP_parallel, the
 * entry point that gcc's compiled code uses and that all three have. */
#include "core/threads_openmp.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct search {
    char path[1024];
};

static int is_runtime(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    static const char *const names[] = {"libgomp", "libomp", "libiomp5"};
    struct search *const search = data;
    const char *const slash = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;
    if (!slash || strlen(info->dlpi_name) >= sizeof search->path) return 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const size_t n = strlen(names[i]);
        const bool same = strncmp(slash + 1, names[i], n) == 0;
        if (!same || (slash[1 + n] != '.' && slash[1 + n] != '-')) continue;
        snprintf(search->path, sizeof search->path, "%s", info->dlpi_name);
        return 1;
    }
    return 0;
}

/* Set the function pointer at `function`; ISO C has no cast from void * to one. */
static bool find(void *library, const char *name, void *function)
{
    void *const symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

bool cmoe__openmp_find(struct cmoe_openmp *omp)
{
    struct search search = {.path = ""};
    memset(omp, 0, sizeof *omp);
    if (!dl_iterate_phdr(is_runtime, &search)) return false;
    omp->library = dlopen(search.path, RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL);
    if (!omp->library) return false;
    if (!find(omp->library, "GOMP_parallel", &omp->parallel) ||
        !find(omp->library, "omp_get_thread_num", &omp->thread) ||
        !find(omp->library, "omp_get_num_threads", &omp->threads) ||
        !find(omp->library, "omp_in_parallel", &omp->inside)) {
        cmoe__openmp_release(omp);
        return false;
    }
    omp->process = (int)getpid();
    snprintf(omp->name, sizeof omp->name, "openmp (%.50s)", strrchr(search.path, '/') + 1);
    return true;
}

void cmoe__openmp_release(struct cmoe_openmp *omp)
{
    if (omp->library) dlclose(omp->library);
    omp->library = NULL;
}

struct job {
    const struct cmoe_openmp *omp;
    cmoe_body body;
    void *arg;
};

static void member(void *data)
{
    const struct job *const job = data;
    job->body(job->arg, job->omp->thread(), job->omp->threads());
}

bool cmoe__openmp_run(const struct cmoe_openmp *omp, int n, cmoe_body body, void *arg)
{
    if (n < 2 || omp->process != (int)getpid() || omp->inside()) return false;
    struct job job = {.omp = omp, .body = body, .arg = arg};
    omp->parallel(member, &job, (unsigned)n, 0);
    return true;
}
