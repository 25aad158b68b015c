/* SPDX-License-Identifier: MIT
 * Visibility, result checking and C++ linkage: the only compiler-dependent part of the headers. */
#ifndef CMOE_EXPORT_H
#define CMOE_EXPORT_H

#if defined(__GNUC__) || defined(__clang__)
#    define CMOE_API                __attribute__((visibility("default")))
#    define CMOE_MUST_CHECK         __attribute__((warn_unused_result))
#    define CMOE_FORMAT(text, args) __attribute__((format(printf, text, args)))
#else
#    define CMOE_API
#    define CMOE_MUST_CHECK
#    define CMOE_FORMAT(text, args)
#endif

#ifdef __cplusplus
#    define CMOE_BEGIN_DECLS extern "C" {
#    define CMOE_END_DECLS   }
#else
#    define CMOE_BEGIN_DECLS
#    define CMOE_END_DECLS
#endif

#endif
