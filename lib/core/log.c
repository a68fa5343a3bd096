/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The log and the texts of errors. In: a level, a format and its arguments. Out: a line
 * for the VMM's log callback; and an error's text is kept for kvmfault_vm_error(). No
 * thread waits here and none allocates, since a fault may come this way.
 */

#include <stdarg.h>
#include <stdio.h>
#include "vm.h"

/*
 * The texts are kept without a lock, since a fault path may come here: a slot
 * that another thread is busy with is passed over. So no thread ever waits, and
 * what a thread may miss is a text of its own that is being replaced.
 */
static void keep(struct kvmfault_vm *vm, const char *text)
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
static void say(struct kvmfault_vm *vm, enum kvmfault_log_level level,
		const char *format, va_list args)
{
	char line[KVMFAULT__TEXT];

	if (level != KVMFAULT_LOG_ERROR && !vm->ops.log)
		return;
	vsnprintf(line, sizeof(line), format, args);
	if (level == KVMFAULT_LOG_ERROR)
		keep(vm, line);
	if (vm->ops.log)
		vm->ops.log(vm->options.data, level, line);
}

void kvmfault__log(struct kvmfault_vm *vm, enum kvmfault_log_level level,
		   const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(vm, level, format, args);
	va_end(args);
}

int kvmfault__refuse(struct kvmfault_vm *vm, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (vm)
		say(vm, KVMFAULT_LOG_ERROR, format, args);
	va_end(args);
	return err;
}

int kvmfault__no_place(struct kvmfault_vm *vm, const char *function)
{
	return kvmfault__refuse(vm, -EINVAL,
		"%s: the last argument, where the object is to go, is NULL",
		function);
}

/* The calling thread's newest, or NULL. */
static struct kvmfault__text *newest(struct kvmfault_vm *vm)
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
	slot = newest((struct kvmfault_vm *)(uintptr_t)vm);
	if (!slot || atomic_exchange(&slot->busy, true))
		return -ENOENT;
	/* Another thread may have replaced it since. */
	if (atomic_load(&slot->owner) == (uintptr_t)pthread_self()) {
		snprintf(text, size, "%s", slot->text);
		err = 0;
	}
	atomic_store(&slot->busy, false);
	return err;
}
