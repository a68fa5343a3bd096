/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* The program kvmfault: its subcommands, and what they share. */

#ifndef TOOL_H
#define TOOL_H

#include <kvmfault.h>
#include <stdbool.h>
#include <stdint.h>

struct json_object;

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

int cmd_probe(int argc, char **argv);
int cmd_demo(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_explain(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_working_set(int argc, char **argv);

/* "kvmfault: ..." on standard error */
__attribute__((format(printf, 1, 2)))
void complain(const char *format, ...);
/* "cannot WHAT: strerror", and for /dev/kvm what to do about it */
void complain_errno(int err, const char *what);

/* Takes --json and --help, for a subcommand without options of its own. Returns
 * an exit code, or -1: go on, at optind. */
int parse_json(int argc, char **argv, const char *help, bool *json);

/* "64M": a decimal number and K, M, G or T, and nothing else. */
bool parse_size(const char *text, uint64_t *size);

/* NULL, false: it can't be done, and that is told. */
struct kvmfault_working_set *load_working_set(const char *path);
bool save_working_set(const struct kvmfault_working_set *set, const char *path);

/* Whether this machine has so much memory to fill, so many times; if not, says
 * so. */
bool have_room(const char *what, uint64_t bytes, unsigned int times);

/* Print an object for a machine to read, and free it. */
void print_json(struct json_object *object);

#endif
