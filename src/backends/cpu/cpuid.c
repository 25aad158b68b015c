/* SPDX-License-Identifier: MIT
 * cpuid and xgetbv on x86-64; elsewhere what the kernel's files say. A feature counts only when the
 * operating system saves its registers. */
#include "backends/cpu/cpuid.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Contents of a small file as text; false when it cannot be read. */
static bool read_text(const char *path, char *text, size_t size)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const ssize_t n = read(fd, text, size - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return n > 0;
}

/* Cache `index` of the first CPU: its level, or 0; instruction caches do not count. */
static int cache_level(int index, int64_t *bytes)
{
    char path[96], text[32];
    const char *const folder = "/sys/devices/system/cpu/cpu0/cache/index";
    snprintf(path, sizeof path, "%s%d/type", folder, index);
    if (!read_text(path, text, sizeof text) || strncmp(text, "Instruction", 11) == 0) return 0;
    snprintf(path, sizeof path, "%s%d/size", folder, index);
    if (!read_text(path, text, sizeof text)) return 0;
    char *unit;
    *bytes = strtoll(text, &unit, 10) * (*unit == 'M' ? 1 << 20 : 1 << 10);
    snprintf(path, sizeof path, "%s%d/level", folder, index);
    return read_text(path, text, sizeof text) ? (int)strtol(text, NULL, 10) : 0;
}

static void describe_caches(struct cmoe_props *props)
{
    for (int i = 0; i < 8; i++) {
        int64_t bytes;
        const int level = cache_level(i, &bytes);
        if (level == 1) props->l1d = bytes;
        if (level == 2) props->l2 = bytes;
        if (level == 3) props->l3 = bytes;
    }
}

#if defined __x86_64__

#    include <cpuid.h>
#    include <errno.h>
#    include <sys/syscall.h>

enum word { LEAF1_ECX, LEAF7_EBX, LEAF7_ECX, LEAF7_EDX, LEAF7_1_EAX, WORDS };

/* Register state that the operating system saves: bits of XCR0. */
enum { STATE_AVX = 0x6, STATE_AVX512 = 0xe6, STATE_AMX = 0x60000 };

static const struct feature {
    const char *name;
    enum word word;
    int bit;
    uint32_t state; /* needed in XCR0 */
} features[] = {
    {"sse4.2", LEAF1_ECX, 20, 0},
    {"avx", LEAF1_ECX, 28, STATE_AVX},
    {"fma", LEAF1_ECX, 12, STATE_AVX},
    {"f16c", LEAF1_ECX, 29, STATE_AVX},
    {"avx2", LEAF7_EBX, 5, STATE_AVX},
    {"avxvnni", LEAF7_1_EAX, 4, STATE_AVX},
    {"avx512f", LEAF7_EBX, 16, STATE_AVX512},
    {"avx512dq", LEAF7_EBX, 17, STATE_AVX512},
    {"avx512bw", LEAF7_EBX, 30, STATE_AVX512},
    {"avx512vl", LEAF7_EBX, 31, STATE_AVX512},
    {"avx512vbmi", LEAF7_ECX, 1, STATE_AVX512},
    {"avx512vnni", LEAF7_ECX, 11, STATE_AVX512},
    {"avx512bf16", LEAF7_1_EAX, 5, STATE_AVX512},
    {"avx512fp16", LEAF7_EDX, 23, STATE_AVX512},
    {"amx-tile", LEAF7_EDX, 24, STATE_AVX512 | STATE_AMX},
    {"amx-bf16", LEAF7_EDX, 22, STATE_AVX512 | STATE_AMX},
    {"amx-int8", LEAF7_EDX, 25, STATE_AVX512 | STATE_AMX},
};

struct cpu {
    uint32_t word[WORDS];
    uint32_t xcr0;
};

static struct cpu ask(void)
{
    struct cpu c = {.xcr0 = 0};
    unsigned a, b, cx, d;
    if (!__get_cpuid(1, &a, &b, &cx, &d)) return c;
    c.word[LEAF1_ECX] = cx;
    if (cx >> 27 & 1) { /* OSXSAVE: xgetbv exists */
        unsigned low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        c.xcr0 = low;
    }
    if (!__get_cpuid_count(7, 0, &a, &b, &cx, &d)) return c;
    c.word[LEAF7_EBX] = b;
    c.word[LEAF7_ECX] = cx;
    c.word[LEAF7_EDX] = d;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &cx, &d)) c.word[LEAF7_1_EAX] = a;
    return c;
}

static bool has(const struct cpu *c, const struct feature *f)
{
    return (c->word[f->word] >> f->bit & 1) && (c->xcr0 & f->state) == f->state;
}

static bool has_all(const struct cpu *c, const char *const *names)
{
    for (; *names; names++)
        for (size_t i = 0; i < sizeof features / sizeof *features; i++)
            if (strcmp(*names, features[i].name) == 0 && !has(c, &features[i])) return false;
    return true;
}

/* Tests on CPUs without the instructions: bodies that do the same in plain C. */
static enum cmoe_isa highest(enum cmoe_isa isa)
{
#    ifdef CMOE_EMULATE
    return isa >= CMOE_ISA_LEVEL_AVX512VNNI ? CMOE_ISA_LEVEL_AMX : isa;
#    else
    return isa;
#    endif
}

enum cmoe_isa cmoe__cpuid_isa(void)
{
    static const char *const avx2[] = {"avx2", "fma", "f16c", NULL};
    static const char *const avx512[] = {"avx512f", "avx512dq", "avx512bw", "avx512vl", NULL};
    static const char *const vnni[] = {"avx512vnni", NULL};
    static const char *const bf16[] = {"avx512bf16", "avx512vbmi", NULL};
    static const char *const amx[] = {"amx-bf16", "amx-int8", "amx-tile", NULL};
    const struct cpu c = ask();
    if (!has_all(&c, avx2)) return CMOE_ISA_LEVEL_GENERIC;
    if (!has_all(&c, avx512)) return CMOE_ISA_LEVEL_AVX2;
    if (!has_all(&c, vnni)) return CMOE_ISA_LEVEL_AVX512;
    if (!has_all(&c, bf16)) return highest(CMOE_ISA_LEVEL_AVX512VNNI);
    return has_all(&c, amx) ? CMOE_ISA_LEVEL_AMX : highest(CMOE_ISA_LEVEL_AVX512BF16);
}

bool cmoe__cpuid_allow_tiles(char *why, size_t len)
{
#    if defined __linux__ && !defined CMOE_EMULATE
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0) return true;
    snprintf(why, len, "%s", strerror(errno));
    return false;
#    else
    (void)why;
    (void)len;
    return true;
#    endif
}

/* Cores of AMD multiply pairs of bf16 at twice the rate of f32; those of Intel, measured on a Xeon
 * 8581C, at half of it. */
static double pairs_gain(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d)) return 0.5;
    return b == 0x68747541 /* "Auth" */ ? 2 : 0.5;
}

static void describe_name(struct cmoe_props *props)
{
    uint32_t text[13] = {0};
    for (unsigned i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002 + i, &text[4 * i], &text[4 * i + 1], &text[4 * i + 2],
                         &text[4 * i + 3]))
            memcpy(text, "x86-64", 7);
    const char *name = (const char *)text;
    snprintf(props->name, sizeof props->name, "%s", name + strspn(name, " "));
}

/* Leaf 22 where it is filled, else the clock in the brand string, else 2.5. */
static double clock_ghz(const char *name)
{
    unsigned base, b, c, d;
    if (__get_cpuid(0x16, &base, &b, &c, &d) && base > 0) return base * 1e-3;
    const char *const at = strchr(name, '@');
    const double ghz = at ? strtod(at + 1, NULL) : 0;
    return ghz > 0.5 && ghz < 8 ? ghz : 2.5;
}

void cmoe__cpuid_describe(struct cmoe_props *props, double *ghz)
{
    const struct cpu c = ask();
    size_t used = 0;
    describe_name(props);
    describe_caches(props);
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        if (!has(&c, &features[i]) || used >= sizeof props->features) continue;
        used += (size_t)snprintf(props->features + used, sizeof props->features - used, "%s%s",
                                 used ? " " : "", features[i].name);
    }
    props->pairs = pairs_gain();
    *ghz = clock_ghz(props->name);
}

#else

enum cmoe_isa cmoe__cpuid_isa(void)
{
    return CMOE_ISA_LEVEL_GENERIC;
}

bool cmoe__cpuid_allow_tiles(char *why, size_t len)
{
    snprintf(why, len, "not an x86-64");
    return false;
}

/* "Key : value" of the kernel's description of the CPUs; the first of them, without the newline. */
static void describe_name(struct cmoe_props *props)
{
    static const char *const keys[] = {"model name", "Model", "CPU part"};
    char text[4096];
    snprintf(props->name, sizeof props->name, "%s", "CPU of this machine");
    if (!read_text("/proc/cpuinfo", text, sizeof text)) return;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *const at = strstr(text, keys[i]);
        const char *const colon = at ? strchr(at, ':') : NULL;
        if (!colon) continue;
        const char *const value = colon + 1 + strspn(colon + 1, " ");
        snprintf(props->name, sizeof props->name, "%.*s", (int)strcspn(value, "\n"), value);
        return;
    }
}

void cmoe__cpuid_describe(struct cmoe_props *props, double *ghz)
{
    describe_name(props);
    describe_caches(props);
    *ghz = 2.5;
}

#endif
