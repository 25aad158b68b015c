/* SPDX-License-Identifier: MIT
 * How many CPUs this process may use: its affinity mask, and the CPU quota of its control group
 * and of every group above it (version 2 and version 1). */
#include "core/cpus.h"

#include "core/threads.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool cmoe__read_line(const char *path, char *line, int size)
{
    FILE *const file = fopen(path, "re");
    if (!file) return false;
    const bool ok = fgets(line, size, file) != NULL;
    fclose(file);
    if (ok) line[strcspn(line, "\n")] = '\0';
    return ok;
}

/* Whole CPUs that quota of period is, rounded up; 0 for no limit. */
static int cpus_of(long long quota, long long period)
{
    if (quota <= 0 || period <= 0) return 0;
    const long long cpus = (quota - 1) / period + 1;
    return cpus > 1 << 20 ? 0 : (int)cpus;
}

static int quota_v2(const char *folder)
{
    char path[1200], line[64];
    long long quota, period;
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    if (!cmoe__read_line(path, line, sizeof line)) return 0;
    return sscanf(line, "%lld %lld", &quota, &period) == 2 ? cpus_of(quota, period) : 0;
}

static int quota_v1(const char *folder)
{
    char path[1200], line[64];
    long long quota = 0, period = 0;
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    if (!cmoe__read_line(path, line, sizeof line) || sscanf(line, "%lld", &quota) != 1) return 0;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    if (!cmoe__read_line(path, line, sizeof line) || sscanf(line, "%lld", &period) != 1) return 0;
    return cpus_of(quota, period);
}

/* The smallest quota of `group` and the groups above it, up to the mount itself: inside a
 * container the group's own path may not exist, but the mount's top is then the container's. */
static int smallest(const char *mount, const char *group, int (*quota)(const char *folder))
{
    char folder[1024];
    const int n = snprintf(folder, sizeof folder, "%s%s", mount, group);
    if (n < 0 || n >= (int)sizeof folder) return quota(mount);
    int least = 0;
    for (;;) {
        const int cpus = quota(folder);
        if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
        char *const slash = strrchr(folder + strlen(mount), '/');
        if (!slash) return least;
        *slash = '\0';
    }
}

/* Whether the comma-separated list of a v1 line, `n` bytes long, has the controller "cpu". */
static bool has_cpu(const char *list, size_t n)
{
    for (const char *word = list; word < list + n;) {
        const size_t length = strcspn(word, ",:");
        if (length == 3 && memcmp(word, "cpu", 3) == 0) return true;
        word += length + 1;
    }
    return false;
}

int cmoe__cpu_quota(const char *root)
{
    char path[512], mount[512], line[1024];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *const file = fopen(path, "re");
    if (!file) return 0;
    int least = 0;
    while (fgets(line, sizeof line, file)) {
        /* "0::/group" (version 2) or "4:cpu,cpuacct:/group" (version 1) */
        line[strcspn(line, "\n")] = '\0';
        const char *const list = strchr(line, ':');
        const char *const group = list ? strchr(list + 1, ':') : NULL;
        if (!group) continue;
        const size_t n = (size_t)(group - list - 1);
        int cpus = 0;
        if (n == 0) {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
            cpus = smallest(mount, group + 1, quota_v2);
        } else if (has_cpu(list + 1, n)) {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/cpu", root);
            cpus = smallest(mount, group + 1, quota_v1);
        }
        if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
    }
    fclose(file);
    return least;
}

struct cmoe_cpus cmoe__cpus_allowed(void)
{
    struct cmoe_cpus cpus;
    if (sched_getaffinity(0, sizeof cpus.set, cpus.set) != 0) memset(&cpus, 0, sizeof cpus);
    return cpus;
}

static int affinity(void)
{
    const struct cmoe_cpus cpus = cmoe__cpus_allowed();
    const int count = CPU_COUNT_S(sizeof cpus.set, cpus.set);
    if (count > 0) return count;
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 && online < 1 << 20 ? (int)online : 1;
}

int cmoe__threads_default(void)
{
    const int cpus = affinity();
    const int quota = cmoe__cpu_quota("");
    const int least = quota > 0 && quota < cpus ? quota : cpus;
    return least > 0 ? least : 1;
}
