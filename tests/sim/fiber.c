/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stacks that one thread of the host changes between. In: the fiber that goes
 * on. Out: the caller goes on when somebody changes back to it. A change saves
 * what a function call has to keep, and no signal mask: no system call.
 */

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "sim.h"

#define STACK (256UL << 10)

void __sanitizer_start_switch_fiber(void **fake, const void *bottom,
				    size_t size);
void __sanitizer_finish_switch_fiber(void *fake, const void **bottom,
				     size_t *size);
void __asan_unpoison_memory_region(void const volatile *address, size_t size);

void sim_fiber_change(void **save, void *to);
void sim_fiber_enter(void);

#if defined(__x86_64__)
__asm__(
	".text\n"
	".globl sim_fiber_change\n"
	"sim_fiber_change:\n"
	"	push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
	"	mov %rsp, (%rdi)\n"
	"	mov %rsi, %rsp\n"
	"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
	"	ret\n"
	".globl sim_fiber_enter\n"
	"sim_fiber_enter:\n"
	"	xor %ebp, %ebp\n"
	"	and $-16, %rsp\n"
	"	call *%rbx\n"
	"	ud2\n");
#define SAVED 6				/* registers, the return address follows */
#define ENTRY 4				/* of these: rbx */
#define RETURN SAVED
#elif defined(__aarch64__)
__asm__(
	".text\n"
	".globl sim_fiber_change\n"
	"sim_fiber_change:\n"
	"	sub sp, sp, #160\n"
	"	stp x19, x20, [sp]\n"
	"	stp x21, x22, [sp, #16]\n"
	"	stp x23, x24, [sp, #32]\n"
	"	stp x25, x26, [sp, #48]\n"
	"	stp x27, x28, [sp, #64]\n"
	"	stp x29, x30, [sp, #80]\n"
	"	stp d8, d9, [sp, #96]\n"
	"	stp d10, d11, [sp, #112]\n"
	"	stp d12, d13, [sp, #128]\n"
	"	stp d14, d15, [sp, #144]\n"
	"	mov x2, sp\n"
	"	str x2, [x0]\n"
	"	mov sp, x1\n"
	"	ldp x19, x20, [sp]\n"
	"	ldp x21, x22, [sp, #16]\n"
	"	ldp x23, x24, [sp, #32]\n"
	"	ldp x25, x26, [sp, #48]\n"
	"	ldp x27, x28, [sp, #64]\n"
	"	ldp x29, x30, [sp, #80]\n"
	"	ldp d8, d9, [sp, #96]\n"
	"	ldp d10, d11, [sp, #112]\n"
	"	ldp d12, d13, [sp, #128]\n"
	"	ldp d14, d15, [sp, #144]\n"
	"	add sp, sp, #160\n"
	"	ret\n"
	".globl sim_fiber_enter\n"
	"sim_fiber_enter:\n"
	"	mov x29, xzr\n"
	"	blr x19\n"
	"	brk #0\n");
#define SAVED 20
#define ENTRY 0				/* x19 */
#define RETURN 11			/* x30 */
#else
#error "the simulator knows how to change stacks on x86-64 and arm64"
#endif

void fiber_init(struct fiber *fiber, void (*run)(void))
{
	uintptr_t *top;

	if (!fiber->stack) {
		fiber->size = STACK;
		fiber->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				    -1, 0);
		if (fiber->stack == MAP_FAILED)
			abort();
	}
	/* What ended in the middle has left its red zones. */
	__asan_unpoison_memory_region(fiber->stack, STACK);
	top = (uintptr_t *)(void *)(fiber->stack + STACK) - 32;
	memset(top, 0, 32 * sizeof(*top));
	top[ENTRY] = (uintptr_t)run;
	top[RETURN] = (uintptr_t)sim_fiber_enter;
	fiber->sp = top;
	fiber->fake = NULL;
}

static struct fiber *came_from;

static void arrived(void *fake)
{
	const void *bottom;
	size_t size;

	__sanitizer_finish_switch_fiber(fake, &bottom, &size);
	/* The host's own stack is known only by leaving it. */
	if (came_from && !came_from->stack) {
		came_from->stack = (char *)(uintptr_t)bottom;
		came_from->size = size;
	}
}

void fiber_begun(void)
{
	arrived(NULL);
}

void fiber_switch(struct fiber *from, struct fiber *to, bool ends)
{
	void *fake = NULL;

	came_from = from;
	__sanitizer_start_switch_fiber(ends ? NULL : &fake, to->stack, to->size);
	sim_fiber_change(&from->sp, to->sp);
	arrived(fake);
}
