/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What ends the process that runs a plan. In: a sanitizer's report, a signal,
 * too long a time. Out: a kind, made of what it is and of the first two functions
 * of the library that were in it; and the process has ended.
 */

#include <execinfo.h>
#include <string.h>
#include <unistd.h>

#include "crash.h"
#include "sim.h"

#define LIMIT 20U			/* seconds */
#define FRAMES 48
#define NAMES 3				/* the two, and one more for people */

void __asan_set_error_report_callback(void (*callback)(const char *report));
void __sanitizer_symbolize_pc(void *pc, const char *format, char *out,
			      size_t size);
void __ubsan_get_current_report_data(const char **kind, const char **message,
				     const char **file, unsigned int *line,
				     unsigned int *column, char **address);
void __ubsan_on_report(void);

static void (*tell_end)(const char *kind, const char *text);

void crash_tell(void (*told)(const char *kind, const char *text))
{
	tell_end = told;
}

void crash_limit(void)
{
	alarm(LIMIT);
}

/* lib/ROOM/NAME.c or tests/sim/NAME.c, as the compiler was told to find it? */
static bool is_in(const char *file, const char *directory)
{
	const char *at = strstr(file, directory), *slash;

	if (!at || (at != file && at[-1] != '/') || !strstr(at, ".c"))
		return false;
	slash = strchr(at + strlen(directory), '/');
	return !slash || !strchr(slash + 1, '/');
}

struct frames {
	char name[NAMES][48];
	unsigned int count;
	bool segv;			/* it comes from mm.c's handler */
};

static void find_frames(struct frames *frames, const char *directory)
{
	void *pc[FRAMES];
	char text[512], *file;
	int n = backtrace(pc, FRAMES), i;

	memset(frames, 0, sizeof(*frames));
	for (i = 0; i < n && frames->count < NAMES; i++) {
		/* The call, not what follows it. */
		__sanitizer_symbolize_pc((char *)pc[i] - 1, "%f %s", text,
					 sizeof(text));
		file = strchr(text, ' ');
		if (!file)
			continue;
		*file++ = '\0';
		frames->segv |= !strcmp(text, "on_segv");
		if (is_in(file, directory))
			snprintf(frames->name[frames->count++],
				 sizeof(frames->name[0]), "%.40s", text);
	}
}

static void end(const char *what, const char *detail)
{
	static bool ending;
	struct frames frames;
	char kind[96], text[512];

	/* One in here is not to be the end of all. */
	if (ending || !tell_end)
		_exit(CRASHED);
	ending = true;
	signal(SIGALRM, SIG_DFL);
	crash_limit();
	find_frames(&frames, "lib/");
	if (!frames.count)
		find_frames(&frames, "sim/");
	if (!strcmp(what, "abort") && frames.segv)
		what = "SIGSEGV";
	snprintf(kind, sizeof(kind), "%.27s%s%.28s%s%.28s", what,
		 frames.count ? " in " : "", frames.name[0],
		 frames.count > 1 ? " < " : "", frames.name[1]);
	snprintf(text, sizeof(text), "%s in %s%s%s%s%s",
		 current ? current->name : "nobody",
		 current && current->call ? current->call : "no call",
		 frames.count > 2 ? ", from " : "", frames.name[2],
		 *detail ? ": " : "", detail);
	tell_end(kind, text);
	fflush(stdout);
	_exit(CRASHED);
}

/* "==1==ERROR: AddressSanitizer: heap-use-after-free on address ...", and then
 * "READ of size 8 at 0x... thread T0". */
static void on_asan(const char *report)
{
	static const char title[] = "AddressSanitizer: ";
	const char *at = strstr(report, title), *access;
	char what[64], detail[32] = "";

	at = at ? at + sizeof(title) - 1 : title;
	snprintf(what, sizeof(what), "%s", at);
	what[strcspn(what, "\n(")] = '\0';
	/* What is poisoned are memories that were freed: see door.c. */
	if (!strncmp(what, "use-after-poison", 16))
		strcpy(what, "heap-use-after-free");
	if (strstr(what, " on "))
		*strstr(what, " on ") = '\0';
	if (strstr(what, " 0x"))
		*strstr(what, " 0x") = '\0';
	access = strstr(report, "READ of size");
	access = access ? access : strstr(report, "WRITE of size");
	if (access)
		snprintf(detail, sizeof(detail), "%.*s",
			 (int)(strstr(access, " at ") - access), access);
	end(what, detail);
}

void __ubsan_on_report(void)
{
	const char *kind = "", *message = "", *file = "";
	unsigned int line = 0, column;
	char what[64], detail[256], *address;

	__ubsan_get_current_report_data(&kind, &message, &file, &line, &column,
					&address);
	snprintf(what, sizeof(what), "UBSan: %s", kind);
	snprintf(detail, sizeof(detail), "%s:%u: %s", file, line, message);
	end(what, detail);
}

static void on_signal(int signo)
{
	end(signo == SIGABRT ? "abort" :
	    signo == SIGALRM ? "a hang" :
	    signo == SIGFPE ? "SIGFPE" :
	    signo == SIGILL ? "SIGILL" : "SIGBUS", "");
}

void crash_init(void)
{
	static const int signals[] = {
		SIGABRT, SIGALRM, SIGBUS, SIGFPE, SIGILL,
	};
	void *pc[1];
	unsigned int i;

	for (i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		signal(signals[i], on_signal);
	__asan_set_error_report_callback(on_asan);
	/* The first call loads a library. */
	backtrace(pc, 1);
}
