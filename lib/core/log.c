/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: the log and the texts of errors. In: a level, a
 * format and its arguments. Out: a line for the VMM's log callback, and a copy
 * of each error's text for kvmfault_vm_error(). No thread waits or allocates
 * here, since the fault path logs as well.
 */

#include <stdarg.h>
#include <stdio.h>
#include "vm.h"

/*
 * The fault path comes here, so there is no lock: a slot that another thread is
 * busy with is passed over. In return a thread may miss a text of its own that
 * another thread replaces.
 */
static void text_keep(struct kvmfault_vm *vm, const char *text)
{
	struct kvmfault__text *slot;
	uint64_t number;

	do {
		number = atomic_fetch_add(&vm->texts.kept, 1);
		slot = &vm->texts.text[number % KVMFAULT__TEXTS];
	} while (atomic_exchange(&slot->busy, true));
	atomic_store(&slot->owner, (uintptr_t)pthread_self());
	atomic_store(&slot->number, number + 1);
	snprintf(slot->text, sizeof(slot->text), "%s", text);
	atomic_store(&slot->busy, false);
}

__attribute__((format(printf, 3, 0)))
static void log_write(struct kvmfault_vm *vm, enum kvmfault_log_level level,
		      const char *format, va_list args)
{
	char line[KVMFAULT__TEXT];

	if (level != KVMFAULT_LOG_ERROR && !vm->ops.log)
		return;
	vsnprintf(line, sizeof(line), format, args);
	if (level == KVMFAULT_LOG_ERROR)
		text_keep(vm, line);
	if (vm->ops.log)
		vm->ops.log(vm->options.data, level, line);
}

void kvmfault__log(struct kvmfault_vm *vm, enum kvmfault_log_level level,
		   const char *format, ...)
{
	va_list args;

	va_start(args, format);
	log_write(vm, level, format, args);
	va_end(args);
}

int kvmfault__refuse(struct kvmfault_vm *vm, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (vm)
		log_write(vm, KVMFAULT_LOG_ERROR, format, args);
	va_end(args);
	return err;
}

int kvmfault__no_place(struct kvmfault_vm *vm, const char *function)
{
	return kvmfault__refuse(vm, -EINVAL,
		"%s: the last argument, through which the new object is returned, is NULL: pass a pointer",
		function);
}

/* The slot with the calling thread's newest text, or NULL. */
static struct kvmfault__text *text_find_newest(struct kvmfault_vm *vm)
{
	struct kvmfault__text *found = NULL;
	uint64_t number = 0;
	size_t i;

	for (i = 0; i < KVMFAULT__TEXTS; i++) {
		struct kvmfault__text *slot = &vm->texts.text[i];

		if (atomic_load(&slot->owner) == (uintptr_t)pthread_self() &&
		    atomic_load(&slot->number) > number) {
			number = atomic_load(&slot->number);
			found = slot;
		}
	}
	return found;
}

KVMFAULT__EXPORT
int kvmfault_vm_error(const struct kvmfault_vm *vm, char *text, size_t size)
{
	struct kvmfault__text *slot;
	int err = -ENOENT;

	if (!vm || !text || !size)
		return -EINVAL;
	slot = text_find_newest((struct kvmfault_vm *)(uintptr_t)vm);
	if (!slot || atomic_exchange(&slot->busy, true))
		return -ENOENT;
	/* Another thread may have replaced the text since the search. */
	if (atomic_load(&slot->owner) == (uintptr_t)pthread_self()) {
		snprintf(text, size, "%s", slot->text);
		err = 0;
	}
	atomic_store(&slot->busy, false);
	return err;
}
